"""What a kind of task is: how its rows are read and encoded, what is asked of a model, and which numbers come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree
from bilevel.data import ChatTemplate, ReadRows, Rejected, Row, Template, Tokenizer, check_rejected
from bilevel.errors import InputError
from bilevel.evaluation.metrics import Columns, Metric
from bilevel.layout import Layout
from bilevel.model import Model
from bilevel.schedule.context import Context
from bilevel.schedule.moves import needs
from bilevel.storage.ledger import Ledger

TooLong = Literal["refuse", "cut"]
"""What becomes of rows that are longer than the model reads."""


@dataclass(frozen=True)
class Reading:
    """How the texts of a task become tokens.

    Attributes:
        tokenizer: the model's.
        max_length: the most tokens that the model reads, what it generates included.
        template: wording around instructions, or its name; "auto" as in `bilevel.data.choose_template`.
        too_long: whether a row that is longer is refused, or loses the beginning of its prompt.
        max_rejected: largest share of a task's rows that may be unusable.
    """

    tokenizer: Tokenizer
    max_length: int
    template: str | Template | ChatTemplate = "auto"
    too_long: TooLong = "refuse"
    max_rejected: float = 0.5

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("max_length", self.max_length >= 3, "3 or more tokens"),
            ("max_rejected", 0 <= self.max_rejected <= 1, "in [0, 1]"),
        )


class Encoded(NamedTuple):
    """A task's rows as a model reads them.

    Attributes:
        rows: those that can be evaluated, in their order.
        tokens: whatever the kind made of them.
        notices: lines for the user about what was left out or cut.
    """

    rows: tuple[Row, ...]
    tokens: Any
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """Who is asked, and with what.

    Attributes:
        params: of the model.
        context: the model's functions, the layout, the seed, what was compiled.
        ledger: answers that were generated before, and where new ones go; None keeps none.
        pause: called between batches; raises where the run is to stop.
    """

    params: PyTree
    context: Context
    ledger: Ledger | None = None
    pause: Callable[[], None] = lambda: None


class Kind(ABC):
    """A kind of task, a frozen dataclass of its settings.

    A kind of your own names its metrics and says how rows are encoded and measured; a `Task` then holds its rows.

    Attributes:
        name: what it is called in `KIND:FILE`, and in files.
        metrics: what comes out, the most telling number first.
        needs: functions of the model that are asked.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    needs: ClassVar[tuple[str, ...]] = ()

    def check(self, model: Model) -> None:
        """Raises where a model lacks what is asked of it.

        Raises:
            InputError: one of `needs` is absent.
        """
        for name in self.needs:
            needs(getattr(model, name), name, f"a task of the kind {self.name}")

    def read(self, source: str) -> ReadRows:
        """Rows of a file.

        Raises:
            InputError: no such file, or rows that this kind cannot use; names the file, the row and the column.
        """
        raise InputError(f"{source}: tasks of the kind {self.name} are not read from files; make a Task")

    @abstractmethod
    def encode(self, rows: Sequence[Row], reading: Reading) -> Encoded:
        """Rows as the model reads them.

        Raises:
            InputError: a row is too long, or too many cannot be used.
        """

    @abstractmethod
    def measure(self, encoded: Encoded, asked: Asked) -> Columns:
        """What is found out about each row: at least the columns that the metrics read."""


def sharded(layout: Layout) -> dict[str, Any]:
    """What a model's `generate` and `choices` are told of the devices, {} for one alone."""
    return {} if layout.shares == 1 else {"sharding": layout.rows}


def too_long(row: Row, tokens: int, others: int, total: int, reading: Reading) -> InputError:
    """The refusal of a task that has rows longer than the model reads.

    Args:
        row: the first of them.
        tokens: how many it has.
        others: how many more there are.
        total: of how many rows.
        reading: what the model reads.
    """
    more = f" ({others + 1} of {total} rows are too long)" if others else ""
    return InputError(
        f"{row.id}: {tokens} tokens are more than the {reading.max_length} that the model reads{more}; shorten or "
        "remove such rows, or let their prompts lose their beginning (--too-long cut)"
    )


def left_out(rejected: Sequence[Rejected], total: int, limit: float) -> tuple[str, ...]:
    """A line for the user about rows that cannot be evaluated, none where all can.

    Args:
        rejected: the rows.
        total: of how many.
        limit: the largest share that may be left out.

    Raises:
        InputError: there are more.
    """
    check_rejected(rejected, total, limit)
    if not rejected:
        return ()
    reasons = ", ".join(sorted({item.reason for item in rejected}))
    return (f"{len(rejected)} of {total} rows are left out ({reasons}; first {rejected[0].id})",)
