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
from bilevel.core.solver import SolverState
from bilevel.core.tree import PyTree
from bilevel.data import EncodedRows
from bilevel.runtime.sections import Section


@dataclass(frozen=True)
class Signal:
    """A named column: a number for each row of a data set, with the round it was measured in."""

    values: np.ndarray
    round: int


@dataclass(frozen=True)
class RunState:
    """Everything that moves read and write.

    Attributes:
        models: parameters by name; `base` is where the run began, `current` what it trains.
        sets: row sets by name: dense row ids into a data set.
        signals: columns by name.
        results: what evaluations found, by data set.
        solver: the solver's state, None before the first `Train`.
        round: rounds finished.
        step: solver steps taken, over all rounds.
    """

    models: Mapping[str, PyTree]
    sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    signals: Mapping[str, Signal] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    solver: SolverState | None = None
    round: int = 0
    step: int = 0

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
        patience: skipped steps in a row that end the run.
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
    patience: int = 10
