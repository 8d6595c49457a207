"""What a run is at one moment, and what it is run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch
from bilevel.core.solver import SolverState, StepReport
from bilevel.core.tree import PyTree
from bilevel.data import EncodedRows, Packing
from bilevel.report.sections import Section


@dataclass(frozen=True)
class Signal:
    """A named column: a number for each row of a data set, with the round it was measured in."""

    values: np.ndarray
    round: int


@dataclass(frozen=True)
class Position:
    """Where in its schedule a run stands.

    Attributes:
        round: rounds of the schedule that are finished.
        move: moves of the present round that are finished.
        steps: solver steps that the present move has taken.
    """

    round: int = 0
    move: int = 0
    steps: int = 0


@dataclass(frozen=True)
class RunState:
    """Everything that moves read and write, and how far they are.

    A state can be saved at any moment and continued from: orders of rows are functions of the step, and keys live
    in the solver's state (`bilevel.schedule.saved`).

    Attributes:
        models: parameters by name; `base` is where the run began, `current` what it trains.
        sets: row sets by name: dense row ids into a data set.
        signals: columns by name.
        results: what evaluations found, by data set.
        solver: the solver's state, None before the first `Train`.
        round: rounds finished, over all schedules that ran from this state's start.
        step: solver steps taken, over all rounds.
        position: where in the present schedule; its beginning, unless a move or a schedule is under way.
        upper_loss: of the model in training on the monitored trusted rows, None where it was not measured.
        unlogged: what the move under way has seen since it last logged numbers.
    """

    models: Mapping[str, PyTree]
    sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    signals: Mapping[str, Signal] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    solver: SolverState | None = None
    round: int = 0
    step: int = 0
    position: Position = Position()
    upper_loss: float | None = None
    unlogged: tuple[StepReport, ...] = ()

    def with_set(self, name: str, ids: np.ndarray) -> RunState:
        """Returns the state with a row set added or replaced."""
        return replace(self, sets={**self.sets, name: ids})

    def with_signal(self, name: str, values: np.ndarray) -> RunState:
        """Returns the state with a column added or replaced, marked with the present round."""
        return replace(self, signals={**self.signals, name: Signal(values, self.round)})

    def with_result(self, name: str, found: Mapping[str, float]) -> RunState:
        """Returns the state with an evaluation added or replaced."""
        return replace(self, results={**self.results, name: found})


@runtime_checkable
class Progress(Protocol):
    """A progress bar: told of finished steps and of numbers worth showing."""

    def advance(self, steps: int, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


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

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop."""

    def due(self, step: int) -> bool:
        """Returns whether the state after this many steps should be saved."""

    def save(self, state: RunState) -> None:
        """Saves a state."""


class KeepsNothing:
    """The saver of a run that lives in memory alone."""

    stopping = False

    def due(self, step: int) -> bool:
        return False

    def save(self, state: RunState) -> None:
        pass


@dataclass(frozen=True)
class Context:
    """What a run is run with; nothing in it changes while moves run.

    Attributes:
        data: encoded rows by name: `pool`, `validation`, `test`.
        row_losses: `(params, batch) -> RowLosses`.
        evaluate: `(params, batch) -> (RowLosses, matches)`.
        mesh: devices that share each batch's rows.
        seed: of orders and keys.
        log: `(step, numbers)`, told every `log_every` steps.
        progress: `(steps) -> Progress`.
        show: told of sections that a method adds to the run's report.
        warn: told of what a user should hear of at once, a line.
        timed: `(move's name) -> context`, entered while a move runs.
        folder: where the run keeps its files; None for a run in memory alone.
        log_every: steps between logged numbers.
        evaluation_rows: rows of a batch when scoring and evaluating.
        packing: whether several rows share a sequence then.
        patience: skipped steps in a row that end the run.
        saver: told of states that could be continued from, and asked whether to stop.
    """

    data: Mapping[str, EncodedRows]
    row_losses: Callable[[PyTree, Batch], RowLosses]
    evaluate: Callable[[PyTree, Batch], tuple[RowLosses, jax.Array]]
    mesh: jax.sharding.Mesh
    seed: int
    log: Callable[[int, Mapping[str, Any]], None]
    progress: Callable[[int], Progress]
    show: Callable[[Section], None] = lambda section: None
    warn: Callable[[str], None] = lambda line: None
    timed: Callable[[str], AbstractContextManager[None]] = lambda move: nullcontext()
    folder: Path | None = None
    log_every: int = 20
    evaluation_rows: int = 128
    packing: Packing = "off"
    patience: int = 10
    saver: Saver = field(default_factory=KeepsNothing)
