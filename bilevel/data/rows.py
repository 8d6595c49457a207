"""What a row is, and what a row that cannot be used is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LABELS = ("fault", "kind", "hard", "duplicate")
"""Columns that reports read and training never sees."""


@dataclass(frozen=True)
class Row:
    """One instruction with its response; in a conversation the last one, with what came before it.

    Args:
        id: stable name of the row, `file:line`.
        instruction: what is asked for.
        input: what the instruction speaks about; empty where the instruction stands alone.
        output: the response to learn.
        labels: the columns named in `LABELS` that the row carries, as text; empty text means "no".
        extra: every other column, as it was read.
        system: what the assistant is told before the conversation.
        history: earlier turns of the conversation, as (question, response).
        form: key of `bilevel.data.forms.FORMS`, the columns that the row came in and is written back in.
        source: those columns as they were read, where texts alone do not give them back (conversations).
    """

    id: str
    instruction: str
    input: str
    output: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    form: str = "alpaca"
    source: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False, repr=False)

    @property
    def prompt(self) -> str:
        """The last question as one text: the instruction, and below it the input where there is one."""
        return f"{self.instruction}\n{self.input}" if self.input.strip() else self.instruction

    @property
    def prompt_key(self) -> tuple[str, ...]:
        """What makes two prompts the same in every form: all texts before the response, without outer blanks."""
        before = (text.strip() for turn in self.history for text in turn)
        return self.system.strip(), *before, self.prompt.strip()

    @property
    def pair_key(self) -> tuple[str, ...]:
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
