"""Measuring rows: any measure of them, by a model or without one, into columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.data import Dataset
from bilevel.schedule.batches import in_turn
from bilevel.schedule.context import Context
from bilevel.schedule.measured import MeasuredRows, file_of
from bilevel.schedule.moves import Move
from bilevel.schedule.state import RunState

Columns = Mapping[str, Float[np.ndarray, " rows"]]

SIGNALS = "signals"
"""Where in a run's folder values are kept by content."""


@dataclass(frozen=True)
class Asked:
    """What a measure is asked about.

    Attributes:
        params: of the model that measures.
        dataset: the rows.
        data: all data sets of the run, for measures that compare.
        context: the model's functions, the layout, what was compiled.
        measured: what is known by content already; None where nothing is kept.
    """

    params: PyTree
    dataset: Dataset
    data: Mapping[str, Dataset]
    context: Context
    measured: MeasuredRows | None = None

    def in_turn(self, ids: Int[np.ndarray, " rows"]) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields `(row ids, batch)` over rows in order, the last batch completed by filler rows, id -1."""
        context = self.context
        size = context.layout.rounded(context.evaluation_rows)
        return in_turn(self.dataset, size, context.layout, context.packing, ids)


@dataclass(frozen=True)
class Measure:
    """Something that can be said of rows, as numbers.

    Attributes:
        name: what it is.
        run: `(asked, row ids) -> columns`, a value for each of these rows and each name of `columns`.
        columns: what the columns are called; "" for one that takes the signal's name.
        whole: whether a row's value depends on the others, so that all are asked about at once; else they come in
            pieces, and what is measured of them is kept when the run is stopped.
        contents: `(asked, row ids) -> texts`: what the values of each row depend on besides the model, so that they
            are found again by content; None for what is not kept. A measure of the whole asks `measured` itself.
    """

    name: str
    run: Callable[[Asked, Int[np.ndarray, " rows"]], Columns]
    columns: tuple[str, ...] = ("",)
    whole: bool = False
    contents: Callable[[Asked, Int[np.ndarray, " rows"]], list[str]] | None = None


def _row_loss(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Columns:
    context = asked.context
    losses = context.kept.compiled(context.model.first_order)
    values = np.zeros(len(ids), np.float32)
    done = 0
    for some, batch in asked.in_turn(ids):
        found = context.layout.gather(losses(asked.params, batch).means)[some >= 0]
        values[done : done + len(found)] = found
        done += len(found)
    return {"": values}


ROW_LOSS = Measure("row loss", _row_loss)
"""The mean token loss of a row's response, in nats."""


@dataclass(frozen=True)
class Score(Move):
    """Measures every row of a data set, or of a set of its rows, into signals.

    What is measured is kept as it comes: a run that is stopped goes on where it was.

    Attributes:
        into: the signal's name; of a measure with several columns, what their names begin with.
        measure: what is measured.
        model: which model measures.
        over: which data set.
        rows: a set of its rows; None for all. Rows outside keep the values that they had.
        folder: where values are kept by content, for measures that know theirs; None for the run's own folder.
    """

    into: str
    measure: Measure = ROW_LOSS
    model: str = "current"
    over: str = "pool"
    rows: str | None = None
    folder: Path | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        chosen = () if self.rows is None else (f"set:{self.rows}",)
        return (f"model:{self.model}", f"data:{self.over}", *chosen)

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(f"signal:{name}" for name in self._names.values())

    @property
    def _names(self) -> dict[str, str]:
        """Signals by the measure's columns."""
        return {column: f"{self.into}{column}" for column in self.measure.columns}

    def run(self, state: RunState, context: Context) -> RunState:
        dataset = state.data[self.over]
        ids = np.arange(len(dataset)) if self.rows is None else state.rows(self.rows, self.over)
        with self._measured(state, context) as measured:
            asked = Asked(state.models[self.model], dataset, state.data, context, measured)
            if measured is None or self.measure.whole or not len(ids):
                columns = self._piece_by_piece(asked, ids, state)
            else:
                columns = self._by_content(asked, ids, measured, state)
        state = replace(state, pending=())
        for column, name in self._names.items():
            values = self._before(name, state)
            values[ids] = columns[column]
            now = state.with_signal(name, values, self.over)
            state = now if self.rows is None else _with_old_rounds(now, state, name, ids)
        return state

    def _piece_by_piece(self, asked: Asked, ids: Int[np.ndarray, " rows"], state: RunState) -> Columns:
        """Measures what is left; what was measured goes with the state that is saved."""
        context, pieces = asked.context, list(state.pending)
        done = sum(len(piece["ids"]) for piece in pieces)
        size = len(ids) if self.measure.whole else context.layout.rounded(context.evaluation_rows)
        while done < len(ids):
            now = replace(state, pending=tuple(pieces))
            context.stop_when_asked(now)
            if pieces and context.saver.due(state.step):
                context.saver.save(now)
            some = ids[done : done + size]
            pieces.append({"ids": some, **self.measure.run(asked, some)})
            done += len(some)
        empty = [np.zeros(0, np.float32)]
        return {
            name: np.concatenate([piece[name] for piece in pieces] or empty) for name in self.measure.columns
        }

    def _by_content(
        self, asked: Asked, ids: Int[np.ndarray, " rows"], measured: MeasuredRows, state: RunState
    ) -> Columns:
        """Measures what nobody has measured yet; what was stands in a file of its own."""
        measure, context = self.measure, asked.context
        assert measure.contents is not None  # what is kept is known by something

        def values(places: Int[np.ndarray, " piece"]) -> Float[np.ndarray, "piece columns"]:
            found = measure.run(asked, ids[places])
            return np.stack([found[name] for name in measure.columns], axis=1)

        found = measured.all_of(
            measure.contents(asked, ids),
            context.layout.rounded(context.evaluation_rows),
            values,
            before_each=lambda: context.stop_when_asked(state),
        )
        return dict(zip(measure.columns, found.T, strict=True))

    def _measured(self, state: RunState, context: Context) -> AbstractContextManager[MeasuredRows | None]:
        """What is known by content: a file for this measure and this model."""
        folder = self.folder or (context.folder and context.folder / SIGNALS)
        if self.measure.contents is None or folder is None:
            return nullcontext()
        path = file_of(folder, self.measure.name, context.model, state.models[self.model])
        return closing(MeasuredRows(path, context.layout))

    def _before(self, name: str, state: RunState) -> np.ndarray:
        """The column to fill: what rows outside the set had, nan for those that had nothing."""
        rows = state.data[self.over]
        old = state.signals.get(name)
        if self.rows is not None and old is not None and old.data == rows.fingerprint:
            return old.values.copy()
        return np.full(len(rows), np.nan, np.float32)


def _with_old_rounds(measured: RunState, before: RunState, name: str, ids: np.ndarray) -> RunState:
    """Rows that were not measured now keep the round that they were measured in."""
    old, new = before.signals.get(name), measured.signals[name]
    if old is None or old.data != new.data:
        return measured
    rounds = old.rounds.copy()
    rounds[ids] = new.rounds[ids]
    return replace(measured, signals={**measured.signals, name: replace(new, rounds=rounds)})
