"""Are these rows fit to be used? Questions asked before time is spent."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bilevel.data.rows import Rejected, Row
from bilevel.errors import InputError


def check_rejected(rejected: Sequence[Rejected], total: int, limit: float = 0.5) -> None:
    """Raises where too many rows of a set were left out.

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


@dataclass(frozen=True)
class Overlap:
    """How validation rows stand in the training rows; ids are (validation row, its first match in training).

    Args:
        pairs: validation rows whose prompt and response are a training row's.
        prompts: validation rows whose prompt is a training row's, the pairs included.
        total: number of validation rows.
    """

    pairs: tuple[tuple[str, str], ...]
    prompts: tuple[tuple[str, str], ...]
    total: int

    @property
    def warning(self) -> str:
        """One line for the user, "" where nothing is shared."""
        if not self.prompts:
            return ""
        valid_id, train_id = self.prompts[0]
        return (
            f"{len(self.prompts)} of {self.total} validation rows share their prompt with a training row, "
            f"{len(self.pairs)} of them the response too (first: {valid_id} and {train_id}); "
            "remove them from one of the two files for an honest upper level"
        )


def check_overlap(train: Sequence[Row], valid: Sequence[Row]) -> Overlap:
    """Which validation rows also stand in the training rows.

    Texts are compared without surrounding blanks. A shared prompt with another response is counted but
    allowed in any number: safety data does this on purpose.

    Args:
        train: rows of the lower level.
        valid: rows of the upper level.

    Returns:
        Both kinds of overlap with ids; its `warning` is for the user.

    Raises:
        InputError: every validation row stands in the training rows with its response.
    """
    pairs: dict[tuple[str, str, str], str] = {}
    prompts: dict[tuple[str, str], str] = {}
    for row in train:
        pairs.setdefault(row.pair_key, row.id)
        prompts.setdefault(row.prompt_key, row.id)
    shared_pairs = tuple((row.id, pairs[row.pair_key]) for row in valid if row.pair_key in pairs)
    shared_prompts = tuple((row.id, prompts[row.prompt_key]) for row in valid if row.prompt_key in prompts)
    if valid and len(shared_pairs) == len(valid):
        valid_id, train_id = shared_pairs[0]
        raise InputError(
            f"all {len(valid)} validation rows stand in the training rows (first: {valid_id} is {train_id}); "
            "hold trusted rows out of the training file"
        )
    return Overlap(shared_pairs, shared_prompts, len(valid))


def _file(item: Rejected) -> str:
    return item.id.rpartition(":")[0]
