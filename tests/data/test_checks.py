"""Too many rejected rows, and validation rows that stand in the training rows."""

from pathlib import Path

import pytest

from bilevel.data import Rejected, Row, check_overlap, check_rejected, read_rows
from bilevel.errors import InputError


def rejected(count: int, reason: str = "empty response") -> list[Rejected]:
    rows = [Row(f"train.jsonl:{line}", "a", "", "") for line in range(1, count + 1)]
    return [Rejected(row, reason, "write an output or remove the row") for row in rows]


def row(identity: str, instruction: str, output: str, input: str = "") -> Row:
    return Row(identity, instruction, input, output)


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


def test_overlap_counts_pairs_and_prompts() -> None:
    train = [row("t:1", "Add.", "3", "1 2"), row("t:2", "Say hi.", "Hi."), row("t:3", "Say hi.", "Hello.")]
    valid = [
        row("v:1", "Add.", "3", "1 3"),
        row("v:2", "Say hi. ", "Hello.\n"),
        row("v:3", "Say hi.", "Good day."),
        row("v:4", "Say bye.", "Bye."),
    ]
    overlap = check_overlap(train, valid)
    assert overlap.pairs == (("v:2", "t:3"),)
    assert overlap.prompts == (("v:2", "t:2"), ("v:3", "t:2"))
    assert overlap.total == 4
    assert overlap.warning.startswith(
        "2 of 4 validation rows share their prompt with a training row, 1 of them the"
    )
    assert "v:2 and t:2" in overlap.warning


def test_disjoint_sets_give_no_warning() -> None:
    overlap = check_overlap([row("t:1", "a", "b")], [row("v:1", "c", "b")])
    assert (overlap.pairs, overlap.prompts, overlap.warning) == ((), (), "")


def test_validation_rows_that_all_stand_in_the_training_rows_are_an_error() -> None:
    train = [row("t:1", "a", "b"), row("t:2", "c", "d"), row("t:3", "e", "f")]
    valid = [row("v:1", "c", "d"), row("v:2", "a", "b")]
    expected = (
        r"all 2 validation rows stand in the training rows \(first: v:1 is t:2\); hold trusted rows out"
    )
    with pytest.raises(InputError, match=expected):
        check_overlap(train, valid)


def test_shared_prompts_with_other_responses_are_allowed_in_any_number() -> None:
    overlap = check_overlap([row("t:1", "a", "yes")], [row("v:1", "a", "no")])
    assert (len(overlap.prompts), len(overlap.pairs)) == (1, 0)


def test_real_validation_rows_share_prompts_with_the_real_training_rows(shared_folder: Path) -> None:
    train = read_rows(shared_folder / "data" / "alpaca_5000_NC.json").rows
    valid = read_rows(shared_folder / "data" / "val_alpaca_gpt4_1000_NC.jsonl").rows
    overlap = check_overlap(train, valid)
    prompts = {(row.instruction.strip(), row.input.strip()) for row in train}
    shared = [row.id for row in valid if (row.instruction.strip(), row.input.strip()) in prompts]
    assert [identity for identity, _ in overlap.prompts] == shared
    assert 0 < len(overlap.pairs) < len(shared)
    assert f"{len(shared)} of 1000 validation rows" in overlap.warning
