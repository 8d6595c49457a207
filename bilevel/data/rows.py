"""What a row is, and what a row that cannot be used is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LABELS = ("fault", "kind", "hard", "duplicate")
"""Columns that reports read and training never sees."""


@dataclass(frozen=True)
class Row:
    """One instruction with its response.

    Args:
        id: stable name of the row, `file:line`.
        instruction: what is asked for.
        input: what the instruction speaks about; empty where the instruction stands alone.
        output: the response to learn.
        labels: the columns named in `LABELS` that the row carries, as text; empty text means "no".
        extra: every other column, as it was read.
    """

    id: str
    instruction: str
    input: str
    output: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def prompt_key(self) -> tuple[str, str]:
        """What makes two prompts the same: instruction and input without surrounding blanks."""
        return self.instruction.strip(), self.input.strip()

    @property
    def pair_key(self) -> tuple[str, str, str]:
        """What makes two rows twins: prompt and response without surrounding blanks."""
        return *self.prompt_key, self.output.strip()

    def label(self, name: str) -> str:
        """Value of a label, "" where the row does not carry it."""
        return self.labels.get(name, "")


@dataclass(frozen=True)
class Rejected:
    """A row that was left out, why, and what its owner can do about it."""

    row: Row
    reason: str
    remedy: str

    @property
    def id(self) -> str:
        """Stable name of the row."""
        return self.row.id
