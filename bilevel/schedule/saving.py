"""Saving a schedule's state to checkpoints as it runs, and finding it again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bilevel.runs.timing import part
from bilevel.schedule.driver import Schedule
from bilevel.schedule.saved import put_together, take_apart
from bilevel.schedule.state import Context, RunState
from bilevel.storage.checkpoints import CheckpointOptions, Checkpoints

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
        stop: whether the run was asked to stop.
        note: called before each save; what it returns, plain values, is kept beside the state.
        clock: seconds since any moment.

    Raises:
        TypeError: the start holds a model that cannot be saved.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        options: CheckpointOptions,
        start: RunState,
        stop: Callable[[], bool] = lambda: False,
        note: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        take_apart(start, RunState(models={}))
        self._checkpoints, self._options, self._start = checkpoints, options, start
        self._stop, self._note, self._clock = stop, note, clock
        self._saved_at, self._saved_step, self._seconds_a_save = clock(), start.step, 0.0

    @property
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
        with part("saving"):
            arrays, notes = take_apart(state, self._start)
            self._checkpoints.save(arrays, {"state": notes, "run": dict(self._note())}, state.upper_loss)
        self._saved_at, self._saved_step = self._clock(), state.step
        self._seconds_a_save = self._saved_at - began

    def newest(
        self, schedule: Schedule, context: Context, complain: Callable[[str], None] = lambda text: None
    ) -> Found | None:
        """Returns the newest saved state that can be read, None where there is none.

        Args:
            schedule: what was running.
            context: what it ran with.
            complain: told, in a line each, which checkpoints cannot be read.

        Raises:
            InputError: a checkpoint of another version of the program.
        """
        checkpoint = self._checkpoints.read_newest(context.mesh, complain)
        if checkpoint is None:
            return None
        notes = checkpoint.notes
        state = put_together(checkpoint.arrays, notes["state"], self._start, schedule, context)
        return Found(state, notes["run"], checkpoint.number)
