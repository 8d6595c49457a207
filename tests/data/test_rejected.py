"""Too many rejected rows."""

import pytest

from bilevel.data import Rejected, Row, check_rejected
from bilevel.errors import InputError


def rejected(count: int, reason: str = "empty response") -> list[Rejected]:
    rows = [Row(f"train.jsonl:{line}", "a", "", "") for line in range(1, count + 1)]
    return [Rejected(row, reason, "write an output or remove the row") for row in rows]


def test_few_rejected_rows_pass() -> None:
    check_rejected([], 10)
    check_rejected(rejected(5), 10)
    check_rejected(rejected(1), 10, limit=0.1)


def test_only_empty_responses_are_said_to_be_so() -> None:
    expected = (
        r"train.jsonl: all 3 rows were rejected, only empty responses \(first train.jsonl:1: write an output"
    )
    with pytest.raises(InputError, match=expected):
        check_rejected(rejected(3), 3, limit=1)


def test_reasons_are_counted_where_all_rows_are_rejected() -> None:
    both = rejected(2) + rejected(1, "empty instruction")
    with pytest.raises(InputError, match="all 3 rows were rejected, 1 empty instruction, 2 empty response "):
        check_rejected(both, 3)


def test_more_than_the_limit_is_an_error() -> None:
    expected = (
        r"2 of 10 rows were rejected \(2 empty response\), 20% are more than the limit of 10%; mend them"
    )
    with pytest.raises(InputError, match=expected):
        check_rejected(rejected(2), 10, limit=0.1)


def test_a_limit_is_a_share() -> None:
    with pytest.raises(InputError, match="limit 5 is not a share"):
        check_rejected([], 10, limit=5)
