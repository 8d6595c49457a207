"""What a run is at one moment: models, rows, what is known of the rows, and how far the schedule is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.core.solver import Solver, SolverState
from bilevel.core.tree import PyTree
from bilevel.data import Dataset


@dataclass(frozen=True)
class Signal:
    """A named column: what is known of each row of a data set.

    Attributes:
        values: a number for each row; nan for a row that was not measured.
        rounds: the round that each was measured in, -1 for none: a rewritten row may still carry its parent's value.
        data: fingerprint of the data set.
    """

    values: Float[np.ndarray, " rows"]
    rounds: Int[np.ndarray, " rows"]
    data: str


@dataclass(frozen=True)
class RowSet:
    """Some rows of a data set.

    Attributes:
        ids: their row ids, in an order that may mean something (best first).
        data: fingerprint of the data set.
    """

    ids: Int[np.ndarray, " chosen"]
    data: str


class Position(NamedTuple):
    """Where in its schedule a run stands.

    Attributes:
        round: rounds of the schedule that are finished.
        move: moves of the present round that are finished.
        steps: steps of the present move that are taken; what a step is, the move knows.
    """

    round: int = 0
    move: int = 0
    steps: int = 0


BEGINNING = Position()


class Trained(NamedTuple):
    """Whose state a run's solver state is.

    Attributes:
        solver: that made it, and can go on with it.
        over: name of the data set that its tables of rows are about.
    """

    solver: Solver
    over: str


@dataclass(frozen=True)
class RunState:
    """Everything that moves read and write, and how far they are.

    A state can be saved at any moment and continued from: draws are functions of cursors, and keys live in the solver's
    state (`bilevel.schedule.saved`).

    Attributes:
        models: parameters by name; `base` is where the run began, `current` what it trains.
        data: data sets by name: `pool`, `validation`, `test`. Moves may replace them.
        drawn: how many rows (or groups of rows) were drawn so far, by stream, see `bilevel.schedule.draws`.
        sets: row sets by name.
        signals: columns by name.
        results: what evaluations found, by data set.
        solver: the solver's state, None before the first `Train`.
        trained: whose state that is.
        round: rounds finished, over all schedules that ran from this state's start.
        step: solver steps taken, over all rounds.
        lower_steps: lower steps taken in them, virtual ones included: what metrics are counted by.
        position: where in the present schedule; its beginning, unless a move or a schedule is under way.
        upper_loss: of the model in training on the monitored trusted rows, None where it was not measured.
        pending: what the move under way keeps for its own rest: arrays by name, in the order in which they came.
    """

    models: Mapping[str, PyTree]
    data: Mapping[str, Dataset] = field(default_factory=dict)
    drawn: Mapping[str, int] = field(default_factory=dict)
    sets: Mapping[str, RowSet] = field(default_factory=dict)
    signals: Mapping[str, Signal] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    solver: SolverState | None = None
    trained: Trained | None = None
    round: int = 0
    step: int = 0
    lower_steps: int = 0
    position: Position = BEGINNING
    upper_loss: float | None = None
    pending: tuple[Mapping[str, Any], ...] = ()

    def with_set(self, name: str, ids: np.ndarray, over: str = "pool") -> RunState:
        """The state with a row set added or replaced."""
        return replace(self, sets={**self.sets, name: RowSet(np.asarray(ids), self.data[over].fingerprint)})

    def with_signal(self, name: str, values: np.ndarray, over: str = "pool") -> RunState:
        """The state with a column added or replaced, all of it marked with the present round."""
        rounds = np.where(np.isnan(values), -1, self.round).astype(np.int32)
        column = Signal(np.asarray(values), rounds, self.data[over].fingerprint)
        return replace(self, signals={**self.signals, name: column})

    def with_result(self, name: str, found: Mapping[str, float]) -> RunState:
        """The state with an evaluation added or replaced."""
        return replace(self, results={**self.results, name: found})

    def without(self, parts: Iterable[str]) -> RunState:
        """The state without some parts, named as moves name what they write."""
        kinds = {"model": "models", "data": "data", "signal": "signals", "set": "sets", "result": "results"}
        found: dict[str, Any] = {}
        for part in parts:
            kind, _, name = part.partition(":")
            if kind in kinds:
                field = kinds[kind]
                left = found.setdefault(field, dict(getattr(self, field)))
                left.pop(name, None)
            elif kind == "solver":
                found["solver"] = None
        return replace(self, **found)

    def rows(self, name: str, over: str = "pool") -> Int[np.ndarray, " chosen"]:
        """The row ids of a set.

        Raises:
            ValueError: the set is of other rows than the data set now holds.
        """
        found = self.sets[name]
        self._check_rows(f"set {name!r}", found.data, over)
        return found.ids

    def column(self, name: str, over: str = "pool") -> Float[np.ndarray, " rows"]:
        """The values of a signal, one for each row of a data set.

        Raises:
            ValueError: the signal was measured on other rows than the data set now holds.
        """
        found = self.signals[name]
        self._check_rows(f"signal {name!r}", found.data, over)
        return found.values

    def _check_rows(self, what: str, fingerprint: str, over: str) -> None:
        if fingerprint != self.data[over].fingerprint:
            raise ValueError(
                f"the {what} is about other rows than {over!r} now holds: measure or choose anew after the rows "
                "were changed"
            )
