"""Whether a rewritten row may take its original's place, and why not; pure functions of texts and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bilevel.core.ranges import check_ranges
from bilevel.curate.ngrams import words
from bilevel.data import Row


class Rewrite(NamedTuple):
    """A row that was written anew, beside the one that it is to replace.

    Attributes:
        old: the original.
        new: the rewrite.
        before: what a signal says of the original; nan where it was not measured.
        after: what it says of the rewrite.
    """

    old: Row
    new: Row
    before: float = float("nan")
    after: float = float("nan")


Gate = Callable[[Rewrite], str]
"""From a rewrite to the reason to refuse it, "" for none."""


def not_empty(rewrite: Rewrite) -> str:
    """Refuses a rewrite without a prompt or a response."""
    missing = [
        name
        for name, text in (("prompt", rewrite.new.prompt), ("response", rewrite.new.output))
        if not text.strip()
    ]
    return f"empty {missing[0]}" if missing else ""


@dataclass(frozen=True)
class LengthBounds:
    """Refuses prompts and responses that are far shorter or longer than the original's.

    Attributes:
        shortest: words of the new text as a share of the old one's, at least.
        longest: the same, at most.
    """

    shortest: float = 0.2
    longest: float = 5.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("shortest", 0 <= self.shortest <= 1, "in [0, 1]"),
            ("longest", self.longest >= 1, "1 or more"),
        )

    def __call__(self, rewrite: Rewrite) -> str:
        for name in ("prompt", "output"):
            old, new = (len(words(getattr(row, name))) for row in (rewrite.old, rewrite.new))
            called = "prompt" if name == "prompt" else "response"
            if new < self.shortest * old:
                return f"{called} too short ({new} words for {old})"
            if new > self.longest * max(1, old):
                return f"{called} too long ({new} words for {old})"
        return ""


class NoNearCopy:
    """Refuses a rewrite whose words, prompt and response, are nearly those of some row.

    Two rows are as near as the share of different n-grams that they have in common is large (Jaccard's index).

    Args:
        rows: those that there are; the rewrite's own original is no exception.
        largest: share from which a rewrite counts as a copy, in (0, 1].
        size: words of an n-gram.
    """

    def __init__(self, rows: Sequence[Row], largest: float = 0.9, size: int = 3) -> None:
        check_ranges(
            {"largest": largest, "size": size},
            ("largest", 0 < largest <= 1, "in (0, 1]"),
            ("size", size >= 1, "1 or more"),
        )
        self._largest, self._size = largest, size
        self._grams = [(row.id, self._of(row)) for row in rows]
        # Rows by n-gram: a near copy shares some.
        self._holders: dict[tuple[str, ...], list[int]] = {}
        for number, (_, grams) in enumerate(self._grams):
            for gram in grams:
                self._holders.setdefault(gram, []).append(number)

    def __call__(self, rewrite: Rewrite) -> str:
        grams = self._of(rewrite.new)
        shared: dict[int, int] = {}
        for gram in grams:
            for number in self._holders.get(gram, ()):
                shared[number] = shared.get(number, 0) + 1
        for number, count in sorted(shared.items()):
            name, other = self._grams[number]
            if count >= self._largest * (len(grams) + len(other) - count):
                return f"a near copy of {name}"
        return ""

    def _of(self, row: Row) -> set[tuple[str, ...]]:
        found = words(f"{row.prompt} {row.output}")
        # A text that is shorter than an n-gram is one, as long as it is.
        return {
            tuple(found[start : start + self._size]) for start in range(max(1, len(found) - self._size + 1))
        }


def lower_than_before(rewrite: Rewrite) -> str:
    """Refuses a rewrite whose signal did not fall: its loss, for a row that was too hard; nor one not measured."""
    return "" if rewrite.after < rewrite.before else f"no lower than before ({rewrite.after:.4g})"


def higher_than_before(rewrite: Rewrite) -> str:
    """Refuses a rewrite whose signal did not rise: a rating, or the similarity to its neighbours."""
    return "" if rewrite.after > rewrite.before else f"no higher than before ({rewrite.after:.4g})"


def first_reason(rewrite: Rewrite, gates: Sequence[Gate]) -> str:
    """The first reason to refuse a rewrite, in the order of the gates; "" if all let it pass.

    >>> old = Row("a:1", "Add 2 and 3.", "", "5")
    >>> first_reason(Rewrite(old, Row("a:1~1.1", "Add 2 and 3.", "", " ")), (not_empty, LengthBounds()))
    'empty response'
    """
    return next((reason for gate in gates if (reason := gate(rewrite))), "")
