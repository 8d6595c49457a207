from __future__ import annotations

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, identity, implicit
from bilevel.data import EncodedRows
from bilevel.errors import InputError
from bilevel.methods import TrainingSettings, bds, uniform_tuning
from bilevel.methods.bds import BDSSettings
from bilevel.objectives import mean_loss
from bilevel.schedule import (
    BatchPlan,
    Evaluate,
    NonFiniteError,
    RunState,
    Score,
    Select,
    Train,
    Weigh,
    run_schedule,
)
from bilevel.weighting import uniform
from tests.schedule.toy import context, encoded, parameters, row_losses

UPPER = mean_loss(row_losses)
TRAINING = TrainingSettings(steps=40, batch_rows=16, upper_rows=8, learning_rate=0.1)


def start() -> RunState:
    return RunState(models={"base": parameters(), "current": parameters()})


def train(steps=10, **options) -> Train:
    problem = RowProblem(row_losses, uniform(), UPPER)
    solver = alternating(problem, optax.adam(0.1), optax.identity(), implicit(identity(1.0)))
    return Train(problem, solver, steps, BatchPlan(16, 8), ("inner",), **options)


def test_training_in_pieces_equals_training_at_once():
    move = train(steps=20)
    whole = run_schedule(((move,),), start(), context())
    half = dataclasses.replace(move, steps=10)
    pieces = run_schedule(((half,), (half,)), start(), context())
    chex.assert_trees_all_equal(pieces.models["current"], whole.models["current"])
    assert (pieces.step, pieces.round, whole.step, whole.round) == (20, 2, 20, 1)


def test_training_from_the_base_forgets_what_was_trained():
    again = run_schedule(((train(10),), (train(10, start="base"),)), start(), context())
    assert int(again.solver.inner.optimizer[0].count) == 10
    chex.assert_trees_all_equal(again.models["base"], parameters())


def test_the_states_that_a_move_was_given_stay_usable():
    before = run_schedule(((train(10),),), start(), context())
    first = run_schedule(((train(5),),), before, context())
    second = run_schedule(((train(5),),), before, context())
    chex.assert_trees_all_equal(first.models["current"], second.models["current"])


def test_a_row_set_restricts_training():
    state = start().with_set("pool", np.arange(24, 60))  # the rows without fault
    clean = run_schedule(((train(60), Evaluate("test")),), state, context())
    noisy = run_schedule(((train(60), Evaluate("test")),), start(), context())
    assert clean.results["test"]["loss"] < noisy.results["test"]["loss"]
    assert clean.results["test"]["exact_match"] == 1.0


def test_scores_and_evaluations_cover_every_row_once_whatever_the_batch():
    state = run_schedule(((train(10), Score("loss"), Evaluate("test")),), start(), context())
    pool = context().data["pool"]
    expected = row_losses(state.models["current"], pool.batch(np.arange(60))).means
    np.testing.assert_allclose(state.signals["loss"].values, expected, rtol=1e-5)
    test = context().data["test"]
    losses = row_losses(state.models["current"], test.batch(np.arange(37))).means
    assert state.results["test"]["loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
    matched = context().evaluate(state.models["current"], test.batch(np.arange(37)))[1]
    assert state.results["test"]["exact_match"] == pytest.approx(float(np.mean(matched)))


def test_selection_keeps_the_heaviest_rows_first():
    state = start().with_signal("weight", np.array([0.1, 3.0, 0.5, 2.0]))
    kept = Select("weight", into="selected", share=0.5).run(state, context())
    assert kept.sets["selected"].tolist() == [1, 3]


def test_a_schedule_that_reads_what_nobody_writes_is_refused_before_it_runs():
    trained = []
    watched = context(log=lambda step, numbers: trained.append(step))
    with pytest.raises(ValueError, match="round 1: Select reads signal:weight"):
        run_schedule(((train(10), Select("weight", "selected", 0.5)),), start(), watched)
    with pytest.raises(ValueError, match="data:exam"):
        run_schedule(((Evaluate("exam"),),), start(), watched)
    with pytest.raises(ValueError, match="Weigh reads solver"):
        run_schedule(((Weigh(uniform()),),), start(), watched)
    assert not trained


def test_eight_devices_train_to_the_model_of_one():
    results = [run_schedule(((train(20), Score("loss")),), start(), context(devices=n)) for n in (1, 8)]
    chex.assert_trees_all_close(*(jax.device_get(r.models["current"]) for r in results), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*(r.signals["loss"].values for r in results), rtol=1e-4, atol=1e-5)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    move = dataclasses.replace(train(10), plan=BatchPlan(12, 8))
    with pytest.raises(InputError, match="12 rows"):
        run_schedule(((move,),), start(), context(devices=8))


def poisoned() -> EncodedRows:
    """Row 7 holds a token beyond the vocabulary's, for which `nan_at_token` gives no number."""
    rows = encoded(60, 0)
    tokens = rows.tokens.copy()
    tokens[7, 0] = 6
    return dataclasses.replace(rows, tokens=tokens)


def nan_at_token(params, batch):
    losses = row_losses(params, batch)
    return losses.replace(total=losses.total + np.nan * (batch["tokens"][:, 0] == 6) * (losses.count > 0))


def nan_training(steps):
    problem = RowProblem(nan_at_token, uniform(), UPPER)
    solver = alternating(problem, optax.adam(0.1), optax.identity(), implicit(identity(1.0)))
    return Train(problem, solver, steps, BatchPlan(15, 8), ("inner",))


def test_a_row_without_a_finite_loss_is_skipped_and_counted():
    logged = []
    found = context(pool=poisoned(), log=lambda step, numbers: logged.append(numbers))
    state = run_schedule(((nan_training(40),),), start(), found)
    assert logged[-1]["skipped_steps"] == 10  # one batch of four holds the row
    assert all(np.isfinite(numbers["lower_loss"]) for numbers in logged)
    assert np.all(np.isfinite(state.models["current"]["table"]))


def test_too_many_skipped_steps_end_the_run_with_the_row():
    state = start().with_set("pool", np.arange(15))
    with pytest.raises(NonFiniteError, match=r"loss is not finite.*: toy:8\."):
        run_schedule(((nan_training(20),),), state, context(pool=poisoned(), patience=5))


def test_metrics_speak_of_both_levels():
    logged = {}
    problem, schedule = bds(row_losses, UPPER, 60, TRAINING, BDSSettings(outer_warmup=10))
    run_schedule(schedule, start(), context(log=lambda step, numbers: logged.update({step: numbers})))
    assert sorted(logged) == [10, 20, 30, 40]
    assert not {"effective_sample_size", "hypergradient_norm"} & set(logged[10])  # the weights are frozen
    assert 0 < logged[40]["effective_sample_size"] < 60.0
    assert logged[40]["hypergradient_norm"] > 0
    assert logged[40]["upper_loss"] < logged[10]["upper_loss"]
    assert problem.weighting is not None


@pytest.mark.parametrize(
    "bad",
    [
        {"rows": 10, "accumulate": 3},
        {"rows": 0},
        {"rows": 8, "upper_rows": 6, "accumulate": 4},
        {"lower_steps": 0},
    ],
    ids=str,
)
def test_batches_that_cannot_be_cut_are_refused(bad):
    with pytest.raises(ValueError, match=r"cut into|lower_steps"):
        BatchPlan(**bad)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"learning_rate": 0.0}, {"warmup_share": 1.0}], ids=str)
def test_training_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainingSettings(**bad)


def test_uniform_tuning_weighs_every_row_alike():
    _, schedule = uniform_tuning(row_losses, UPPER, TRAINING)
    state = run_schedule(schedule, start(), context())
    np.testing.assert_array_equal(state.signals["weight"].values, np.ones(60))
