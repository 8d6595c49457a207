"""Tasks from files: `FILE`, whose kind its columns tell, or `KIND:FILE`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bilevel.data.forms import recognise
from bilevel.data.sources import open_source
from bilevel.errors import InputError
from bilevel.evaluation.answers import Answering
from bilevel.evaluation.generate import Generate, Normalisation
from bilevel.evaluation.kind import Kind, left_out
from bilevel.evaluation.last_word import LastWord
from bilevel.evaluation.loss import Loss
from bilevel.evaluation.multiple_choice import CHOICES, MultipleChoice
from bilevel.evaluation.refusal import Refusal
from bilevel.evaluation.task import Task

KINDS = ("loss", "multiple_choice", "last_word", "generate", "refusal")
"""Kinds of tasks that are read from files."""

_TEXT_FILES = (".txt", ".text")
_OTHERS = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class TaskOptions:
    """Settings of the kinds of tasks.

    Attributes:
        answering: how answers are generated.
        normalise: what makes a generated answer the expected one.
        delimiter: what stands between a question and its choice.
    """

    answering: Answering = field(default_factory=Answering)
    normalise: Normalisation = "blanks"
    delimiter: str = MultipleChoice.delimiter

    def kind(self, name: str) -> Kind:
        """The kind of a name, with these settings."""
        kinds: Mapping[str, Kind] = {
            "loss": Loss(),
            "multiple_choice": MultipleChoice(self.delimiter),
            "last_word": LastWord(),
            "generate": Generate(self.answering, self.normalise),
            "refusal": Refusal(self.answering),
        }
        return kinds[name]


def read_tasks(
    sources: Sequence[str],
    options: TaskOptions | None = None,
    limit: int | None = None,
    max_rejected: float = 0.5,
) -> tuple[Task, ...]:
    r"""Tasks from files, checked as far as they can be without a model.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "sums.jsonl"
    ...     _ = file.write_text('{"query": "2 + 2 =", "choices": ["3", "4"], "gold": 1}\n')
    ...     tasks = read_tasks([str(file), f"generate:{Path(folder) / 'sums.jsonl'}"][:1])
    >>> tasks[0].name, tasks[0].kind.name, tasks[0].rows[0].output
    ('sums', 'multiple_choice', '4')

    A task is called as its file, with the kind behind where that is not the one that its columns tell.

    Args:
        sources: `FILE` or `KIND:FILE`, with a kind of `KINDS`; files as `bilevel.data.read_rows` takes them.
        options: settings of the kinds.
        limit: the most rows of each.
        max_rejected: largest share of a file's rows that may be unusable.

    Raises:
        InputError: a file cannot be read or used, or two tasks have the same name.
    """
    options = TaskOptions() if options is None else options
    tasks = [_read_task(source, options, max_rejected).first(limit) for source in sources]
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise InputError(f"{task.source}: two tasks are called {task.name}; rename one of the files")
    return tuple(tasks)


def _read_task(given: str, options: TaskOptions, max_rejected: float) -> Task:
    prefix, colon, rest = given.partition(":")
    named = prefix if colon and prefix in KINDS else None
    source = rest if named else given
    if not source:
        raise InputError(f"{given}: a task needs a file; write {named}:FILE")
    if not named and colon and "/" not in prefix and not Path(given).exists() and Path(rest).exists():
        raise InputError(f"{given}: there is no kind {prefix!r}; take one of {', '.join(KINDS)}")
    shown = _shown_kind(source) if named is None else _shown_if_any(source)
    if named is None and shown is None:
        raise InputError(
            f"{source}: its rows have prompts and no responses to compare with; say refusal:{source} to count refusals"
        )
    kind = options.kind(named or shown or "")
    read = kind.read(source)
    said = left_out(read.rejected, len(read.rows) + len(read.rejected), max_rejected)
    name = _OTHERS.sub("_", Path(source).name.partition(".")[0] or Path(source).name)
    if kind.name != shown:
        name = f"{name}_{kind.name}"
    return Task(name, kind, read.rows, (*read.notices, *said), source)


def _shown_if_any(source: str) -> str | None:
    """The same where another kind is asked for: what is wrong is then said by whoever reads the rows."""
    try:
        return _shown_kind(source)
    except InputError:
        return None


def _shown_kind(source: str) -> str | None:
    """The kind that a file's first row shows; None for prompts alone.

    Raises:
        InputError: no such file, nothing inside, or columns of no kind.
    """
    if Path(source).suffix.lower() in _TEXT_FILES:
        return "last_word"
    found = open_source(source, ("test",))
    number, record = next(found.records, (0, None))
    if not number:
        raise InputError(f"{found.place}: no rows inside; write at least one")
    place = f"{found.place}:{number}"
    columns = set(record) if isinstance(record, Mapping) else set[Any]()
    if {CHOICES, "query", "gold"} & columns:
        return "multiple_choice"
    if {"context", "continuation"} <= columns:
        return "last_word"
    try:
        recognise(place, record)
    except InputError as error:
        if {"context", "continuation"} & columns:
            return "last_word"
        if {"prompt", "instruction", "question"} & columns:
            return None
        raise InputError(
            f"{error}; other tasks have query, choices and gold, or context and continuation"
        ) from None
    return "loss"
