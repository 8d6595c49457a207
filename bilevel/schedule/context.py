"""What a run is run with; nothing in it changes what comes out but the model, the seed and the batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from bilevel.core.compiled import Compiled
from bilevel.data import Packing
from bilevel.layout import Layout, data_layout
from bilevel.model import Model
from bilevel.report.sections import Section
from bilevel.schedule.state import RunState

Made = TypeVar("Made")


@runtime_checkable
class Progress(Protocol):
    """A progress bar: told of finished steps and of numbers worth showing."""

    def advance(self, steps: int, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class Silent:
    """The progress bar of nobody who looks."""

    def advance(self, steps: int, values: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Stopped(Exception):
    """The run was asked to stop; raised by moves, with the state to continue from.

    Attributes:
        state: where the run stands.
    """

    def __init__(self, state: RunState) -> None:
        super().__init__(f"stopped after step {state.step}")
        self.state = state


@runtime_checkable
class Saver(Protocol):
    """Keeps states, so that a run that ends early can be continued."""

    def stopping(self) -> bool:
        """Whether the run was asked to stop."""

    def due(self, step: int) -> bool:
        """Whether the state after this many steps should be saved."""

    def save(self, state: RunState) -> None:
        """Saves a state."""


class KeepsNothing:
    """The saver of a run that lives in memory alone."""

    def stopping(self) -> bool:
        return False

    def due(self, step: int) -> bool:
        return False

    def save(self, state: RunState) -> None:
        pass


class Kept:
    """What moves make once and use again: compiled programs, packed rows.

    It belongs to what runs, and goes with it: a cache of the module would hold a frozen base model on the device for as
    long as the process lives.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What was made under this key, or is made now."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def compiled(self, function: Callable[..., Any]) -> Compiled:
        """One compiled function for each function, so that moves share compilations."""
        return self.get(("compiled", function), lambda: Compiled(function))


@dataclass(frozen=True)
class Context:
    """What a run is run with; nothing in it changes while moves run.

    Attributes:
        model: the model's functions.
        layout: devices and processes.
        seed: of draws and keys.
        log: `(step, numbers)`, told every `log_every` steps.
        progress: `(steps) -> Progress`.
        show: told of sections that a method adds to the run's report.
        warn: told of what a user should hear of at once, a line.
        timed: `(move's name) -> context`, entered while a move runs.
        name: what runs, for files that moves leave.
        folder: where the run keeps its files; None for a run in memory alone.
        log_every: lower steps between logged numbers.
        evaluation_rows: rows of a batch when scoring and evaluating.
        packing: whether several rows share a sequence then.
        patience: skipped steps in a row that end the run.
        saver: told of states that could be continued from, and asked whether to stop.
        kept: what moves make once and use again.
    """

    model: Model
    layout: Layout = field(default_factory=data_layout)
    seed: int = 0
    log: Callable[[int, Mapping[str, Any]], None] = lambda step, numbers: None
    progress: Callable[[int], Progress] = lambda steps: Silent()
    show: Callable[[Section], None] = lambda section: None
    warn: Callable[[str], None] = lambda line: None
    timed: Callable[[str], AbstractContextManager[None]] = lambda move: nullcontext()
    name: str = "method"
    folder: Path | None = None
    log_every: int = 20
    evaluation_rows: int = 128
    packing: Packing = "off"
    patience: int = 10
    saver: Saver = field(default_factory=KeepsNothing)
    kept: Kept = field(default_factory=Kept)

    def stop_when_asked(self, state: RunState) -> None:
        """Raises Stopped, with a state to continue from, where the run was asked to stop."""
        if self.layout.agree(self.saver.stopping()):
            raise Stopped(state)
