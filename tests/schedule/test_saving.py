"""Stopped anywhere, saved, read back and continued: the same run, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, identity, implicit
from bilevel.errors import InputError
from bilevel.methods import BDSSettings, TrainingSettings, bds
from bilevel.objectives import mean_loss
from bilevel.schedule import (
    BatchPlan,
    CheckpointSaver,
    Evaluate,
    Position,
    RunState,
    Snapshot,
    Stopped,
    Train,
    run_schedule,
)
from bilevel.schedule.saved import put_together, take_apart
from bilevel.storage.checkpoints import CheckpointOptions, Checkpoints
from bilevel.weighting import row_logits, uniform
from tests.schedule.toy import context, parameters, row_losses

UPPER = mean_loss(row_losses)
TRAINING = TrainingSettings(steps=24, batch_rows=16, upper_rows=8, learning_rate=0.1)
_, ROUNDS = bds(row_losses, UPPER, 60, TRAINING, BDSSettings(outer_warmup=5))
PROBLEM = RowProblem(row_losses, row_logits(60), UPPER)
SOLVER = alternating(PROBLEM, optax.adam(0.1), optax.sgd(0.1), implicit(identity(1.0)))
AGAIN = Train(PROBLEM, SOLVER, 9, BatchPlan(16, 8), start="base", outer_every=2)
ONLY_AT_STOPS = CheckpointOptions(every_seconds=1e9)
SCHEDULE = (*ROUNDS, (Snapshot("first"), AGAIN, Evaluate("test")))


@pytest.fixture(scope="module")
def start():
    model = parameters()
    return RunState(models={"base": model, "current": model})


class StopAt:
    """Asks to stop when it is asked for the n-th time."""

    def __init__(self, asked: int):
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def run_in_pieces(folder, start, stops, devices=1, options=ONLY_AT_STOPS):
    """Runs the schedule, stopping each attempt; returns the end, and the lines that a run folder would hold."""
    lines: list[tuple] = []
    for asked in itertools.chain(stops, [10**9]):
        running = context(devices=devices, log_every=7, log=lambda step, found: lines.append((step, found)))
        checkpoints = Checkpoints(folder, options)
        saver = CheckpointSaver(
            checkpoints, options, start, stop=StopAt(asked), note=lambda: {"lines": len(lines)}
        )
        found = saver.newest(SCHEDULE, running)
        if found is not None:
            del lines[found.notes["lines"] :]
        try:
            return (
                run_schedule(
                    SCHEDULE,
                    found.state if found else start,
                    dataclasses.replace(running, saver=saver),
                ),
                lines,
            )
        except Stopped:
            pass
        finally:
            checkpoints.close()
    raise AssertionError("the last attempt is not stopped")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start):
    return run_in_pieces(tmp_path_factory.mktemp("whole"), start, [])


def is_key(leaf):
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def parts(state):
    """A state as a tree: a dataclass of ours is no pytree."""
    signals = {name: (signal.values, signal.round) for name, signal in state.signals.items()}
    return state.models, state.solver, dict(state.sets), signals, state.results, state.round, state.step


# Within the first training, between moves, while rows are scored, in the last training, in the last evaluation.
@pytest.mark.parametrize("stops", [[2], [8, 3], [11, 1, 1, 16], [37], [44, 3], [51], [0, 0, 0, 0]], ids=str)
def test_a_run_that_is_stopped_and_continued_is_the_run_that_was_not(stops, whole, start, tmp_path):
    state, lines = run_in_pieces(tmp_path, start, stops)
    expected, expected_lines = whole
    assert_same_parts(state, expected)
    assert lines == expected_lines
    assert state.upper_loss == expected.upper_loss
    assert state.position == expected.position == Position()


def assert_same_parts(found, expected):
    found, expected = parts(found), parts(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = (np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in (one, other))
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_arrays_come_back_where_they_were_on_eight_devices(start, tmp_path):
    stopped, lines = run_in_pieces(tmp_path / "pieces", start, [3, 9], devices=8)
    expected, expected_lines = run_in_pieces(tmp_path / "whole", start, [], devices=8)
    assert_same_parts(stopped, expected)
    assert lines == expected_lines
    for one, other in zip(jax.tree.leaves(stopped.solver), jax.tree.leaves(expected.solver), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_what_the_run_began_with_is_not_stored_and_nothing_is_stored_twice(start, whole):
    arrays, _ = take_apart(start, start)
    assert arrays == {}
    state = dataclasses.replace(whole[0], sets={}, signals={})
    arrays, notes = take_apart(state, start)
    assert not [name for name in arrays if name.startswith("models/current")]
    assert notes["models"]["current"] == {"table": "solver/inner/inner/table"}
    assert notes["models"]["base"] == {"table": "start/base/table"}


def test_every_part_of_a_state_is_saved():
    # Whoever adds a part must decide how it is saved.
    assert {part.name for part in dataclasses.fields(RunState)} == {
        *("models", "sets", "signals", "results", "solver"),
        *("round", "step", "position", "upper_loss", "unlogged"),
    }


def test_a_state_of_another_solver_is_refused_with_its_reason(start, whole):
    arrays, notes = take_apart(whole[0], start)
    problem = RowProblem(row_losses, uniform(), UPPER)
    other = alternating(problem, optax.sgd(0.1), optax.identity(), implicit(identity(1.0)))
    schedule = ((Train(problem, other, 40, BatchPlan(16, 8)),),)
    notes |= {"position": {"round": 0, "move": 0, "steps": 3}, "unlogged": []}
    with pytest.raises(InputError, match=r"another version of this program .*differs in solver/"):
        put_together(arrays, notes, start, schedule, context())


def test_models_of_unknown_kinds_are_refused_before_a_run_begins(tmp_path):
    odd = optax.EmptyState()
    start = RunState(models={"base": {"layer": odd}, "current": {"layer": odd}})
    with pytest.raises(TypeError, match="base/layer"):
        CheckpointSaver(Checkpoints(tmp_path), CheckpointOptions(), start)


class Recorder(Checkpoints):
    """Checkpoints that take their time, and write nothing."""

    def __init__(self, folder, clock, seconds):
        super().__init__(folder)
        self.clock, self.seconds, self.saved = clock, seconds, []

    def save(self, arrays, notes, upper_loss=None):
        self.saved.append(self.clock())
        self.clock.now += self.seconds


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("options", "cost", "expected"),
    [
        (CheckpointOptions(every_seconds=60), 0.0, [60, 120, 180, 240, 300]),
        # A save of three seconds may come every 150 seconds: a fiftieth of the time.
        (CheckpointOptions(every_seconds=60), 3.0, [60, 213]),
        (CheckpointOptions(every_seconds=float("inf"), every_steps=100), 0.0, [100, 200, 300]),
        (CheckpointOptions(every_seconds=90, every_steps=200), 0.0, [90, 180, 200, 290]),
    ],
    ids=str,
)
def test_states_are_saved_as_often_as_was_asked_and_cheaply(options, cost, expected, tmp_path):
    clock = Clock()
    recorder = Recorder(tmp_path, clock, cost)
    saver = CheckpointSaver(recorder, options, RunState(models={}), clock=clock)
    for step in range(1, 301):  # a step a second
        clock.now += 1
        if saver.due(step):
            saver.save(RunState(models={}, step=step))
            assert not saver.due(step)
    assert recorder.saved == expected
