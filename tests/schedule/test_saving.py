"""Stopped anywhere, saved, read back and continued: the same run, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel.core import alternating, identity, implicit
from bilevel.errors import InputError
from bilevel.methods import BDSSettings, TrainingSettings, bds
from bilevel.schedule import (
    CheckpointSaver,
    Evaluate,
    Keep,
    Position,
    Round,
    RunState,
    Steps,
    Train,
)
from bilevel.schedule.saved import put_together, take_apart
from bilevel.storage.checkpoints import CheckpointOptions, Checkpoints
from tests.schedule import toy
from tests.schedule.pieces import assert_same, run_in_pieces
from tests.schedule.toy import BOTH_LEVELS, MODEL, PLAN, UNIFORM, WEIGHED, context, data

TRAINING = TrainingSettings(steps=24, batch_rows=16, upper_rows=8, learning_rate=0.1)
METHOD = bds(MODEL, data(), training=TRAINING, settings=BDSSettings(outer_warmup=5))
AGAIN = Train(WEIGHED, BOTH_LEVELS, Steps(9), PLAN, start="base", outer_every=2)
SCHEDULE = (*METHOD.schedule, Round((Keep("first", "outer"), AGAIN, Evaluate("test"))))


@pytest.fixture(scope="module")
def start():
    return toy.start()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start):
    return run_in_pieces(tmp_path_factory.mktemp("whole"), SCHEDULE, start, log_every=7)


# Within the first training, between moves, while rows are scored, in the last training, in the last evaluation.
@pytest.mark.parametrize("stops", [[2], [8, 3], [11, 1, 1, 16], [37], [44, 3], [51], [0, 0, 0, 0]], ids=str)
def test_a_run_that_is_stopped_and_continued_is_the_run_that_was_not(stops, whole, start, tmp_path):
    state, lines, stopped = run_in_pieces(tmp_path, SCHEDULE, start, stops, log_every=7)
    expected, expected_lines, _ = whole
    assert len(stopped) == len(stops)
    assert_same(state, expected)
    assert lines == expected_lines
    assert state.position == Position()


def test_arrays_come_back_where_they_were_on_eight_devices(start, tmp_path):
    schedule = (Round((AGAIN, Keep("first", "outer"), AGAIN)),)
    stopped, lines, _ = run_in_pieces(tmp_path / "pieces", schedule, start, [3, 9], devices=8)
    expected, expected_lines, _ = run_in_pieces(tmp_path / "whole", schedule, start, devices=8)
    assert_same(stopped, expected)
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
        *("models", "data", "drawn", "sets", "signals", "results", "solver", "trained"),
        *("round", "step", "lower_steps", "position", "upper_loss", "pending"),
    }


def test_a_state_of_another_solver_is_refused_with_its_reason(start, whole):
    arrays, notes = take_apart(whole[0], start, SCHEDULE)
    assert notes["trained"] == {"round": 1, "move": 1, "over": "pool"}
    other = alternating(UNIFORM, optax.sgd(0.1), optax.identity(), implicit(identity(1.0)))
    train = Train(UNIFORM, other, Steps(40), PLAN)
    with pytest.raises(InputError, match=r"another version of this program .*differs in solver/"):
        put_together(arrays, notes, start, (Round(()), Round((Evaluate("test"), train))))
    with pytest.raises(InputError, match=r"another version of this program .*differs in its schedule"):
        put_together(arrays, notes, start, (Round((train,)),))


def test_rows_that_nobody_has_any_more_are_missed(start, whole):
    changed = dataclasses.replace(whole[0], data=data(seed=1))
    arrays, notes = take_apart(changed, start, SCHEDULE)
    with pytest.raises(InputError, match="the rows of 'pool'"):
        put_together(arrays, notes, start, SCHEDULE)
    found = put_together(
        arrays, notes, start, SCHEDULE, {each.fingerprint: each for each in changed.data.values()}.__getitem__
    )
    assert found.data == changed.data


@pytest.mark.parametrize(
    "model",
    [
        {"layers": {0: {"kernel": 1.0}, 1: {"kernel": 2.0}, 10: {"kernel": 3.0}}},
        {"tuple": 1.0},
        {"keys": {"tuple": {"keys": 1.0}}},
        [1.0, (2.0, None, {"tuple": (3.0,)}), {}],
    ],
    ids=str,
)
def test_models_of_any_nest_are_read_back(model, start, tmp_path):
    """Items of a list of Flax's NNX have whole numbers for names; no name of a user's means anything to us."""
    tree = jax.tree.map(jnp.asarray, model)
    state = dataclasses.replace(start, models={**start.models, "kept": tree})
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        saver = CheckpointSaver(checkpoints, CheckpointOptions(), start)
        saver.save(state)
        found = saver.newest(context().layout).state
    assert jax.tree.structure(found.models["kept"]) == jax.tree.structure(tree)
    assert jax.tree.map(float, found.models["kept"]) == model


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
