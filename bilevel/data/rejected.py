"""Rows that were left out: how many are too many, and what the user is told."""

from collections import Counter
from collections.abc import Sequence

from bilevel.data.rows import Rejected
from bilevel.errors import InputError


def check_rejected(rejected: Sequence[Rejected], total: int, limit: float = 0.5) -> None:
    """Refuses a set of which too many rows were left out.

    >>> from bilevel.data import Row
    >>> empty = Rejected(Row("pool.jsonl:1", "Add.", "", ""), "empty response", "write the output or remove the row")
    >>> check_rejected([empty], total=10)
    >>> check_rejected([empty], total=1)
    Traceback (most recent call last):
    bilevel.errors.InputError: pool.jsonl: all 1 rows were rejected, only empty responses (first pool.jsonl:1: ...)

    Args:
        rejected: rows that were left out.
        total: rows that were read, the rejected ones included.
        limit: the largest share that may be left out.

    Raises:
        InputError: every row was rejected, or more than `limit` of them.
    """
    if not 0 <= limit <= 1:
        raise InputError(
            f"limit {limit} is not a share; give the largest rejected share as a number from 0 to 1"
        )
    if not rejected:
        return
    counts = Counter(item.reason for item in rejected)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    first = f"first {rejected[0].id}: {rejected[0].remedy}"
    if len(rejected) >= total:
        detail = "only empty responses" if set(counts) == {"empty response"} else reasons
        raise InputError(f"{_file(rejected[0])}: all {total} rows were rejected, {detail} ({first})")
    share = len(rejected) / total
    if share > limit:
        raise InputError(
            f"{_file(rejected[0])}: {len(rejected)} of {total} rows were rejected ({reasons}), "
            f"{share:.0%} are more than the limit of {limit:.0%}; mend them or raise the limit ({first})"
        )


def rejected_notice(name: str, rejected: Sequence[Rejected], total: int) -> tuple[str, ...]:
    """A line for the user about the rows of a set that were left out, none where all are there."""
    if not rejected:
        return ()
    reasons = ", ".join(sorted({item.reason for item in rejected}))
    return (f"{name}: {len(rejected)} of {total} rows rejected ({reasons}); see rejected.jsonl",)


def _file(item: Rejected) -> str:
    return item.id.rpartition(":")[0]
