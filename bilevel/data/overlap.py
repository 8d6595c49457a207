"""Rows of one set that also stand in another, found before time is spent."""

from collections.abc import Sequence
from dataclasses import dataclass

from bilevel.data.rows import Row
from bilevel.errors import InputError


@dataclass(frozen=True)
class Overlap:
    """How rows of one set stand in another; ids are (row of the second set, its first match in the first).

    Attributes:
        pairs: rows of the second set whose prompt and response are a row's of the first.
        prompts: rows of the second set whose prompt is a row's of the first, the pairs included.
        total: number of rows of the second set.
        first: what rows of the first set are called.
        second: what rows of the second set are called.
    """

    pairs: tuple[tuple[str, str], ...]
    prompts: tuple[tuple[str, str], ...]
    total: int
    first: str = "training"
    second: str = "validation"

    @property
    def warning(self) -> str:
        """One line for the user, "" where nothing is shared."""
        if not self.prompts:
            return ""
        second_id, first_id = self.prompts[0]
        purpose = "upper level" if self.second == "validation" else "test"
        return (
            f"{len(self.prompts)} of {self.total} {self.second} rows share their prompt with a {self.first} row, "
            f"{len(self.pairs)} of them the response too (first: {second_id} and {first_id}); "
            f"remove them from one of the two files for an honest {purpose}"
        )


def find_overlap(
    first_rows: Sequence[Row], second_rows: Sequence[Row], first: str = "training", second: str = "validation"
) -> Overlap:
    """Which rows of one set also stand in another.

    >>> train = [Row("pool:1", "Add 2 and 3.", "", "5"), Row("pool:2", "Say hello.", "", "Hello.")]
    >>> find_overlap(train, [Row("valid:1", "Say hello. ", "", "Hi!")]).prompts
    (('valid:1', 'pool:2'),)

    Texts are compared without surrounding blanks, whatever columns they came in; a conversation's earlier turns and
    system message belong to its prompt. A shared prompt with another response is counted but allowed in any number:
    safety data does this on purpose.

    Args:
        first_rows: rows to look among.
        second_rows: rows to look for.
        first: what the first are called, for the warning.
        second: what the second are called.

    Returns:
        Both kinds of overlap with ids; its `warning` is for the user.
    """
    pairs: dict[tuple[str, ...], str] = {}
    prompts: dict[tuple[str, ...], str] = {}
    for row in first_rows:
        pairs.setdefault(row.pair_key, row.id)
        prompts.setdefault(row.prompt_key, row.id)
    shared_pairs = tuple((row.id, pairs[row.pair_key]) for row in second_rows if row.pair_key in pairs)
    shared_prompts = tuple(
        (row.id, prompts[row.prompt_key]) for row in second_rows if row.prompt_key in prompts
    )
    return Overlap(shared_pairs, shared_prompts, len(second_rows), first, second)


def check_overlap(train: Sequence[Row], valid: Sequence[Row]) -> Overlap:
    """Which validation rows also stand in the training rows; see `find_overlap`.

    >>> check_overlap([Row("pool:1", "Add 2 and 3.", "", "5")], [Row("valid:1", "Add 2 and 4.", "", "6")]).warning
    ''

    Args:
        train: rows of the lower level.
        valid: rows of the upper level.

    Raises:
        InputError: every validation row stands in the training rows with its response.
    """
    overlap = find_overlap(train, valid)
    if valid and len(overlap.pairs) == len(valid):
        valid_id, train_id = overlap.pairs[0]
        raise InputError(
            f"all {len(valid)} validation rows stand in the training rows (first: {valid_id} is {train_id}); "
            "hold trusted rows out of the training file"
        )
    return overlap
