"""Saving a schedule's state to checkpoints as it runs, and finding it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from bilevel.layout import Layout
from bilevel.schedule.rounds import Schedule
from bilevel.schedule.saved import put_together, take_apart
from bilevel.schedule.state import RunState
from bilevel.storage.checkpoints import CheckpointOptions, Checkpoints
from bilevel.storage.row_store import RowStore

_SHARE_OF_TIME = 50
"""Saving takes at most one part in so many of a run's time."""


class Found(NamedTuple):
    """A state that was saved.

    Attributes:
        state: where to go on.
        notes: what was noted with it.
        number: of the checkpoint.
    """

    state: RunState
    notes: Mapping[str, Any]
    number: int


class CheckpointSaver:
    """Saves when the options say so, when the run is asked to stop, and at the schedule's end.

    Args:
        checkpoints: where to.
        options: when.
        start: where the run began; what it holds is not saved again.
        schedule: what runs.
        rows: where data sets go that moves have made; they are there before a checkpoint names them.
        stop: whether the run was asked to stop.
        note: called before each save; what it returns, plain values, is kept beside the state.
        clock: seconds since any moment.
        timed: entered while a state is saved.

    Raises:
        TypeError: the start holds a model that cannot be saved.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        options: CheckpointOptions,
        start: RunState,
        schedule: Schedule = (),
        rows: RowStore | None = None,
        stop: Callable[[], bool] = lambda: False,
        note: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        take_apart(start, RunState(models={}))
        self._checkpoints, self._options, self._start = checkpoints, options, start
        self._schedule, self._rows = schedule, rows
        self._stop, self._note, self._clock, self._timed = stop, note, clock, timed
        self._stored = {dataset.fingerprint for dataset in start.data.values()}
        self._saved_at, self._saved_step, self._seconds_a_save = clock(), start.step, 0.0

    def stopping(self) -> bool:
        return self._stop()

    def due(self, step: int) -> bool:
        every_steps = self._options.every_steps
        if every_steps is not None and step % every_steps == 0 and step != self._saved_step:
            return True
        wait = max(self._options.every_seconds, _SHARE_OF_TIME * self._seconds_a_save)
        return self._clock() - self._saved_at >= wait

    def save(self, state: RunState) -> None:
        began = self._clock()
        with self._timed():
            self._store_rows(state)
            arrays, notes = take_apart(state, self._start, self._schedule)
            self._checkpoints.save(arrays, {"state": notes, "run": dict(self._note())}, state.upper_loss)
        self._saved_at, self._saved_step = self._clock(), state.step
        self._seconds_a_save = self._saved_at - began

    def newest(self, layout: Layout, complain: Callable[[str], None] = lambda text: None) -> Found | None:
        """The newest saved state that can be read, None where there is none.

        Args:
            layout: where its arrays are placed.
            complain: told, in a line each, which checkpoints cannot be read.

        Raises:
            InputError: a checkpoint of another version of the program, or one whose rows are gone.
        """
        checkpoint = self._checkpoints.read_newest(layout.stored, complain)
        if checkpoint is None:
            return None
        read = None if self._rows is None else self._rows.get
        notes = checkpoint.notes
        state = put_together(checkpoint.arrays, notes["state"], self._start, self._schedule, read)
        return Found(state, notes["run"], checkpoint.number)

    def _store_rows(self, state: RunState) -> None:
        for name, dataset in state.data.items():
            if dataset.fingerprint in self._stored:
                continue
            if self._rows is None:
                raise TypeError(
                    f"the rows of {name!r} were changed, and there is no row store to keep them in"
                )
            self._rows.put(dataset)
            self._stored.add(dataset.fingerprint)
