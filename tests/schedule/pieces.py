"""Runs that are stopped and go on from what they saved."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import NamedTuple

import jax
import numpy as np

from bilevel.schedule import CheckpointSaver, RunState, Schedule, Stopped, run_schedule
from bilevel.storage.checkpoints import Checkpoint, CheckpointOptions, Checkpoints
from bilevel.storage.row_store import RowStore
from bilevel.storage.stored_arrays import as_described, as_stored, describe
from tests.schedule.toy import context

ONLY_AT_STOPS = CheckpointOptions(every_seconds=1e9)
FOR_EVER = 10**9


class Where(NamedTuple):
    """Where a run was stopped."""

    round: int
    move: int
    steps: int
    pending: int


class StopAt:
    """Asks to stop when it is asked for the n-th time."""

    def __init__(self, asked: int):
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


class InMemory(Checkpoints):
    """Checkpoints as Orbax would give them back, without its files: for runs that are stopped everywhere."""

    saved: tuple[dict, str] | None = None

    def save(self, arrays, notes, upper_loss=None):
        stored = {name: (describe(array), np.array(as_stored(array))) for name, array in arrays.items()}
        self.saved = stored, json.dumps(notes)

    def read_newest(self, place, complain=print):
        if self.saved is None:
            return None
        arrays = {}
        for name, (text, values) in self.saved[0].items():
            if "axes" in text:
                values = jax.device_put(values, place(name, tuple(text["shape"]), tuple(text["axes"])))
            arrays[name] = as_described(values, text)
        return Checkpoint(1, arrays, json.loads(self.saved[1]))

    def close(self):
        pass


def run_in_pieces(
    folder, schedule: Schedule, start: RunState, stops=(), *, in_memory: bool = False, model=None, **options
) -> tuple[RunState, list[tuple], list[Where]]:
    """Runs a schedule, stopping an attempt at each of the numbers, and going on from what it saved.

    Args:
        folder: for checkpoints and for rows that were changed.
        schedule: what to run.
        start: where to begin.
        stops: after how many questions whether to stop each attempt is told so; the attempt after the last is not.
            Whoever checks types asks once or twice, too.
        in_memory: whether checkpoints stay there.
        model: whose functions the moves ask; the toy's unless given.
        **options: of the context.

    Returns:
        The end, the lines that a run folder would hold, and where the attempts were stopped.
    """
    lines: list[tuple] = []
    stopped_at: list[Where] = []
    kept = InMemory(folder) if in_memory else None
    for asked in itertools.chain(stops, [FOR_EVER]):
        running = context(log=lambda step, found: lines.append((step, found)), **options)
        running = running if model is None else dataclasses.replace(running, model=model)
        checkpoints = kept or Checkpoints(folder / "checkpoints", ONLY_AT_STOPS)
        saver = CheckpointSaver(
            checkpoints,
            ONLY_AT_STOPS,
            start,
            schedule,
            RowStore(folder / "rows"),
            stop=StopAt(asked),
            note=lambda: {"lines": len(lines)},
        )
        found = saver.newest(running.layout)
        if found is not None:
            del lines[found.notes["lines"] :]
        state = found.state if found else start
        try:
            end = run_schedule(schedule, state, dataclasses.replace(running, saver=saver))
            return end, lines, stopped_at
        except Stopped as stopped:
            stopped_at.append(Where(*stopped.state.position, len(stopped.state.pending)))
        finally:
            checkpoints.close()
    raise AssertionError("the last attempt is not stopped")


def assert_same(found: RunState, expected: RunState) -> None:
    """The same state, bit for bit."""
    assert _known_by(found) == _known_by(expected)
    one, other = _arrays(found), _arrays(expected)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        left, right = (np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in (left, right))
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _arrays(state: RunState):
    """A state as a tree: a dataclass of ours is no pytree."""
    signals = {name: (signal.values, signal.rounds) for name, signal in state.signals.items()}
    sets = {name: chosen.ids for name, chosen in state.sets.items()}
    counts = (dict(state.drawn), state.round, state.step, state.lower_steps)
    results = {name: dict(numbers) for name, numbers in state.results.items()}
    return dict(state.models), state.solver, sets, signals, results, counts


def _known_by(state: RunState):
    """Whose rows a state's columns and sets are about, and who can go on with its solver's state."""
    data = {name: dataset.fingerprint for name, dataset in state.data.items()}
    about = {name: each.data for name, each in (*state.signals.items(), *state.sets.items())}
    return data, about, state.trained, state.upper_loss, state.position
