"""Moves that decide about rows: which of them to use, and what they are from now on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int

from bilevel.data import Dataset
from bilevel.schedule.context import Context
from bilevel.schedule.moves import Move
from bilevel.schedule.state import RowSet, RunState, Signal


@dataclass(frozen=True)
class Choice:
    """What a rule chooses from.

    Attributes:
        columns: signals by name, a value for each row.
        dataset: the rows.
        round: rounds finished.
        rng: for rules that draw; a function of the run's seed and the round.
        sets: row sets by name, the ids in their order.
        warn: told of what a user should hear of, a line.
    """

    columns: Mapping[str, Float[np.ndarray, " rows"]]
    dataset: Dataset
    round: int
    rng: np.random.Generator
    sets: Mapping[str, Int[np.ndarray, " chosen"]] = field(default_factory=dict)
    warn: Callable[[str], None] = print


Rule = Callable[[Choice], Int[np.ndarray, " chosen"]]


@dataclass(frozen=True)
class Choose(Move):
    """Chooses rows by a rule, into a row set.

    Attributes:
        rule: from what is known of the rows to the ids of those that are chosen, in an order that is kept.
        into: the set's name.
        signals: names of the columns that the rule reads.
        over: which data set.
        sets: names of the row sets that the rule reads.
    """

    rule: Rule
    into: str
    signals: tuple[str, ...] = ()
    over: str = "pool"
    sets: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        known = (f"signal:{name}" for name in self.signals)
        return (f"data:{self.over}", *known, *(f"set:{name}" for name in self.sets))

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"set:{self.into}",)

    def run(self, state: RunState, context: Context) -> RunState:
        columns = {name: state.column(name, self.over) for name in self.signals}
        rng = np.random.default_rng([context.seed, state.round])
        dataset = state.data[self.over]
        sets = {name: state.rows(name, self.over) for name in self.sets}
        choice = Choice(columns, dataset, state.round, rng, sets, context.warn)
        ids = np.asarray(self.rule(choice), np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(dataset):
            raise ValueError(f"the rule for {self.into!r} chose rows outside 0 .. {len(dataset) - 1}")
        return state.with_set(self.into, ids, self.over)


def top_share(signal: str, share: float) -> Rule:
    """The rows of the highest values, best first; of equal ones the first, at least one row.

    Args:
        signal: the column.
        share: of the rows that are kept, in (0, 1].
    """

    def rule(choice: Choice) -> Int[np.ndarray, " chosen"]:
        values = choice.columns[signal]
        return np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]

    return rule


@dataclass(frozen=True)
class CountUses(Move):
    """Counts how often each row stands in some sets, into a signal whose mean over all rows is 1.

    Of the sets that a model was trained on, one after the other, that is what each row weighed.

    Attributes:
        sets: their names, one as often as it was used.
        into: the signal's name.
        over: which data set.
    """

    sets: tuple[str, ...]
    into: str
    over: str = "pool"

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"data:{self.over}", *(f"set:{name}" for name in self.sets))

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"signal:{self.into}",)

    def run(self, state: RunState, context: Context) -> RunState:
        used = np.concatenate([state.rows(name, self.over) for name in self.sets])
        rows = len(state.data[self.over])
        counts = np.bincount(used, minlength=rows) * (rows / max(1, len(used)))
        return state.with_signal(self.into, counts.astype(np.float32), self.over)


@dataclass(frozen=True)
class Changed:
    """Rows after a change.

    Attributes:
        dataset: the new rows: those that stayed, rewritten ones, new ones.
        came_from: for each new row the old one whose weight, signals and tables it goes on with; -1 for a row that
            begins as rows begin.
    """

    dataset: Dataset
    came_from: Int[np.ndarray, " new"]


@dataclass(frozen=True)
class Change(Move):
    """Replaces the rows of a data set; what is known of the rows follows them.

    Signals, sets and the solver's tables go on with the rows that came from old ones; nothing else of the solver
    changes. How often rows were drawn begins anew.

    Attributes:
        rule: `(state, context) -> Changed`.
        over: which data set.
        also_reads: what else the rule reads, as in `Move.reads`.
    """

    rule: Callable[[RunState, Context], Changed]
    over: str = "pool"
    also_reads: tuple[str, ...] = field(default=())

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"data:{self.over}", *self.also_reads)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"data:{self.over}",)

    def run(self, state: RunState, context: Context) -> RunState:
        old = state.data[self.over]
        changed = self.rule(state, context)
        new, came_from = changed.dataset, np.asarray(changed.came_from)
        if came_from.shape != (len(new),) or (
            len(new) and not -1 <= came_from.min() <= came_from.max() < len(old)
        ):
            raise ValueError(
                f"came_from must name, for each of {len(new)} rows, one of {len(old)} old rows or -1, "
                f"not {came_from.shape[0] if came_from.ndim else 'a number'} values up to {came_from.max(initial=-1)}"
            )
        follow = indices_came_from(old, new, came_from)
        solver = state.solver
        if solver is not None and state.trained is not None and state.trained.over == self.over:
            solver = state.trained.solver.carry(solver, new.sizes, follow)
            solver = context.layout.replicate(solver)
        carried = replace(state, data={**state.data, self.over: new}, solver=solver)
        return replace(
            carried,
            sets={name: _set_after(found, old, new, came_from) for name, found in state.sets.items()},
            signals={
                name: _signal_after(found, old, new, came_from) for name, found in state.signals.items()
            },
        )


def indices_came_from(
    old: Dataset, new: Dataset, came_from: Int[np.ndarray, " new"]
) -> dict[str, Int[np.ndarray, " new"]]:
    """For every index of the new rows (questions, sources) the old entry whose tables it goes on with.

    A new question goes on as that of the first of its rows that came from an old row; -1 where none did.
    """
    found = {"row_id": came_from}
    rows = np.flatnonzero(came_from >= 0)
    for name, size in new.sizes.items():
        if name == "row_id":
            continue
        entries = np.full(size, -1, np.int64)
        if name in old.columns:
            now, before = new.columns[name][rows], old.columns[name][came_from[rows]]
            # Backwards, so that of several rows of a question the first one has the last word.
            entries[now[now >= 0][::-1]] = before[now >= 0][::-1]
        found[name] = entries
    return found


def _set_after(found: RowSet, old: Dataset, new: Dataset, came_from: np.ndarray) -> RowSet:
    if found.data != old.fingerprint:
        return found
    places = {int(place): row for row, place in reversed(list(enumerate(came_from))) if place >= 0}
    ids = np.array([places[row] for row in found.ids.tolist() if row in places], np.int64)
    return RowSet(ids, new.fingerprint)


def _signal_after(found: Signal, old: Dataset, new: Dataset, came_from: np.ndarray) -> Signal:
    if found.data != old.fingerprint:
        return found
    follows = came_from >= 0
    values = np.where(follows, found.values[came_from], np.nan).astype(found.values.dtype)
    return Signal(values, np.where(follows, found.rounds[came_from], -1).astype(np.int32), new.fingerprint)
