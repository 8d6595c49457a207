"""A task: named rows of one kind, and the same as one model reads them, ready to be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property

from bilevel.core.tree import PyTree
from bilevel.data import Row
from bilevel.data.dataset import digest
from bilevel.data.rows import row_line
from bilevel.errors import InputError
from bilevel.evaluation.kind import Asked, Encoded, Kind, Reading
from bilevel.evaluation.measured import FOLDER, Measured, write_measured
from bilevel.schedule.context import Context
from bilevel.storage.ledger import Ledger

ANSWERS = "answers.jsonl"
"""Where generated answers are kept, in the folder of evaluations."""


@dataclass(frozen=True)
class Task:
    """Rows, and what is asked about them.

    Attributes:
        name: what it is called in tables and files; letters, digits and such, no slash.
        kind: what is asked, and how it is scored.
        rows: where it is asked.
        notices: lines for the user about how the rows were read.
        source: the file, "" for none.
    """

    name: str
    kind: Kind
    rows: tuple[Row, ...]
    notices: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise InputError(f"a task cannot be called {self.name!r}: give it a name without a slash")
        if not self.rows:
            raise InputError(f"{self.source or self.name}: the task has no rows; write at least one")
        if len({row.id for row in self.rows}) < len(self.rows):
            raise InputError(f"{self.source or self.name}: two rows have the same id; give each its own")

    @cached_property
    def fingerprint(self) -> str:
        """What is asked: rows, kind and settings."""
        settings = f"{self.kind.name} {asdict(self.kind)}"  # type: ignore[call-overload]
        return digest([settings, *map(row_line, self.rows)], {})

    def first(self, rows: int | None) -> Task:
        """The task with its first rows alone; None keeps all."""
        if rows is None or rows >= len(self.rows):
            return self
        said = f"the first {rows} of {len(self.rows)} rows"
        return Task(self.name, self.kind, self.rows[:rows], (*self.notices, said), self.source)

    def prepared(self, reading: Reading) -> PreparedTask:
        """The task as a model reads it.

        Raises:
            InputError: a row is too long, or too many cannot be used.
        """
        try:
            return PreparedTask(self, self.kind.encode(self.rows, reading))
        except InputError as error:
            raise InputError(f"task {self.name}: {error}") from None


@dataclass(frozen=True, eq=False)
class PreparedTask:
    """A task as a model reads it; a schedule's `Evaluate` takes such.

    Attributes:
        task: what is asked.
        encoded: its rows as tokens.
    """

    task: Task
    encoded: Encoded

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def measure(
        self,
        params: PyTree,
        context: Context,
        ledger: Ledger | None = None,
        pause: Callable[[], None] = lambda: None,
    ) -> Measured:
        """What a model makes of the task, row by row.

        Args:
            params: of the model.
            context: the model's functions, the layout, the seed.
            ledger: answers that were generated before, and where new ones go.
            pause: called between batches; raises where the evaluation is to stop.
        """
        columns = self.task.kind.measure(self.encoded, Asked(params, context, ledger, pause))
        return Measured(
            self.name,
            self.task.kind.name,
            self.task.kind.metrics,
            tuple(row.id for row in self.encoded.rows),
            columns,
            (*self.task.notices, *self.encoded.notices),
            self.task.fingerprint,
        )

    def evaluate(
        self, params: PyTree, context: Context, pause: Callable[[], None] = lambda: None
    ) -> Mapping[str, float]:
        """The task's metrics; where the run has a folder, what was measured of each row is left there.

        A run that is stopped or killed finds the answers that it had generated in the folder again. Of several
        processes none does: all must ask the same, and one alone could read what is there.
        """
        if context.folder is None:
            return self.measure(params, context, pause=pause).values
        folder = context.folder / FOLDER
        with Ledger(folder / ANSWERS) if context.layout.alone else nullcontext() as ledger:
            found = self.measure(params, context, ledger, pause)
        if context.layout.first:
            write_measured(folder / context.name, found)
        return found.values

    def check(self, context: Context) -> None:
        """Raises where the model cannot be asked.

        Raises:
            InputError: it lacks a function that the task's kind needs.
        """
        self.task.kind.check(context.model)
