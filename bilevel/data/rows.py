"""What a row is, where it comes from, and what a row that cannot be used is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

LABELS = ("fault", "kind", "hard", "duplicate")
"""Columns that reports read and training never sees."""


@dataclass(frozen=True)
class Lineage:
    """Where a row comes from that was made from another one.

    Attributes:
        parent: id of the row that it was made from.
        round: when it was made, from 0.
        origin: what made it: the name of a refiner, a generator, a merge.
        scores: numbers that it was chosen or kept for, by name.
    """

    parent: str
    round: int
    origin: str
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)

    def record(self) -> dict[str, Any]:
        """The lineage as JSON knows it."""
        return {
            "parent": self.parent,
            "round": int(self.round),
            "origin": self.origin,
            "scores": {name: float(score) for name, score in self.scores.items()},
        }


def read_lineage(value: Any) -> Lineage | None:
    """The lineage that a cell of a file holds, None where it holds anything else.

    >>> read_lineage({"parent": "pool.jsonl:3", "round": 1, "origin": "refiner", "scores": {"loss": 2.5}}).parent
    'pool.jsonl:3'
    >>> read_lineage("a text of the user's own") is None
    True
    """
    if not isinstance(value, Mapping) or set(value) != {"parent", "round", "origin", "scores"}:
        return None
    parent, made, origin, scores = (value[name] for name in ("parent", "round", "origin", "scores"))
    if not (isinstance(parent, str) and isinstance(origin, str) and _is_count(made)):
        return None
    if not isinstance(scores, Mapping):
        return None
    # Tables give every row the scores that any row has, and null where this one has none.
    scores = {name: score for name, score in scores.items() if score is not None}
    if not all(isinstance(score, int | float) and not isinstance(score, bool) for score in scores.values()):
        return None
    return Lineage(parent, made, origin, {name: float(score) for name, score in scores.items()})


def child_id(parent: str, round: int, number: int) -> str:
    """The id of a row that is made from another one: the same whenever it is made again, and no other row's.

    >>> child_id("pool.jsonl:3", 2, 1)
    'pool.jsonl:3~2.1'
    >>> child_id(child_id("pool.jsonl:3", 2, 1), 3, 1)
    'pool.jsonl:3~2.1~3.1'

    Args:
        parent: id of the row that it is made from.
        round: when it is made.
        number: which of that row's children of the round it is.
    """
    return f"{parent}~{round}.{number}"


@dataclass(frozen=True)
class Row:
    """One instruction with its response; in a conversation the last one, with what came before it.

    >>> row = Row("pool.jsonl:1", "Add the numbers.", "2 3", "5")
    >>> print(row.prompt)
    Add the numbers.
    2 3

    Attributes:
        id: stable name of the row, `file:line`.
        instruction: what is asked for.
        input: what the instruction speaks about; empty where the instruction stands alone.
        output: the response to learn.
        labels: the columns named in `LABELS` that the row carries, as text; empty text means "no".
        extra: every other column, as it was read, and labels that were no such text.
        system: what the assistant is told before the conversation.
        history: earlier turns of the conversation, as (question, response).
        form: key of `bilevel.data.forms.FORMS`, the columns that the row came in and is written back in.
        source: those columns as they were read, where texts alone do not give them back (conversations).
        lineage: where the row comes from, None for rows that were read.
        unlearned: places in the history of responses that are read and not learned.
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
    lineage: Lineage | None = None
    unlearned: tuple[int, ...] = ()

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


def free_name(name: str, taken: Collection[str]) -> str:
    """A column's name that nobody has yet: itself, or with a number behind it.

    >>> free_name("score", {"score", "score_2"})
    'score_3'

    Args:
        name: the name.
        taken: names that are there.
    """
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def row_line(row: Row) -> str:
    """The row as one line of JSON, all of it; what JSON does not know (a date, say) is written as text."""
    fields = {name: value for name, value in vars(row).items() if name != "lineage"}
    if not row.unlearned:  # as rows were written before there were such marks
        del fields["unlearned"]
    return json.dumps(fields | {"lineage": row.lineage and row.lineage.record()}, default=str)


def row_of_line(line: str) -> Row:
    """The row that `row_line` wrote; its own line is the same again.

    >>> row = Row("pool.jsonl:1", "Add.", "2 3", "5", history=(("Hi.", "Hello."),))
    >>> row_of_line(row_line(row)) == row
    True
    """
    fields = json.loads(line)
    history = tuple((question, answer) for question, answer in fields.pop("history"))
    unlearned = tuple(fields.pop("unlearned", ()))
    return Row(
        **fields | {"history": history, "lineage": read_lineage(fields["lineage"]), "unlearned": unlearned}
    )


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


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
