"""The move that trains: what it begins from, what it goes on with, and what it holds in memory."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import Problem, RowProblem, alternating, frozen, identity, implicit, penalty
from bilevel.errors import InputError
from bilevel.schedule import (
    BatchPlan,
    Evaluate,
    Keep,
    Round,
    Score,
    Steps,
    Train,
    repeat,
    run_schedule,
)
from bilevel.schedule.snapshots import Adopt
from bilevel.weighting import exponentiated_gradient, given
from tests.schedule.toy import (
    BOTH_LEVELS,
    PLAN,
    UPPER,
    WEIGHED,
    context,
    nothing_may_run,
    parameters,
    row_losses,
    run,
    start,
    train,
)

TWO_COPIES = penalty(WEIGHED, optax.adam(0.1), exponentiated_gradient(0.1), optax.constant_schedule(0.5))


def test_training_in_pieces_equals_training_at_once():
    whole = run(train(20))
    pieces = run_schedule(repeat(2, (train(10),)), start(), context())
    chex.assert_trees_all_equal(pieces.models["current"], whole.models["current"])
    assert (pieces.step, pieces.round, whole.step, whole.round) == (20, 2, 20, 1)


def test_training_from_the_base_forgets_what_was_trained():
    again = run_schedule((Round((train(10),)), Round((train(10, start="base"),))), start(), context())
    assert int(again.solver.inner.optimizer[0].count) == 10
    chex.assert_trees_all_equal(again.models["base"], parameters())


def test_a_new_optimizer_can_begin_at_the_model_in_training():
    first = run(train(10), Keep("kept"))
    kept = jax.device_get(first.models["kept"])
    again = run(train(1, start="current"), state=first)
    assert int(again.solver.inner.optimizer[0].count) == 1
    # Adam's first step moves every entry that has a gradient by its rate, from where the model was.
    moved = np.abs(again.models["current"]["table"] - kept["table"])
    assert moved.max() == pytest.approx(0.1, rel=1e-3)
    assert moved.min() == 0.0


def test_only_the_solver_s_state_is_used_up_by_going_on():
    """The state's arrays are donated, the model in training with them, so that nothing stands in memory twice."""
    before = run(train(10), Keep("kept"))
    kept = jax.device_get(before.models["kept"])
    after = run(train(5), state=before)
    chex.assert_trees_all_equal(before.models["kept"], kept)
    chex.assert_trees_all_equal(before.models["base"], parameters())
    assert before.models["kept"]["table"] is after.models["kept"]["table"]
    assert not after.models["current"]["table"].is_deleted()
    # `kept` was the model in training, which was copied for that reason; its moments were taken.
    assert before.solver.inner.optimizer[0].mu["table"].is_deleted()


@pytest.mark.parametrize("second", ["continue", "continue from a kept model", "base"])
def test_a_second_training_holds_nothing_twice(second):
    """Two copies with two moments each and the base are seven arrays; a model that is kept is one of its own."""
    size = (1009, 6)  # no other test's
    counts: list[int] = []

    def count(step, numbers):
        counts.append(sum(array.shape == size for array in jax.live_arrays()))

    model = {"table": jnp.zeros(size)}
    begun = [dataclasses.replace(start(), models={"base": model, "current": model})]
    del model
    move = Train(WEIGHED, TWO_COPIES, Steps(2), PLAN)
    again = dataclasses.replace(move, start="base") if second == "base" else move
    keep = (Keep("kept"),) if "kept" in second else ()
    run_schedule((Round((move, *keep, again)),), begun.pop(), context(log=count, log_every=1))
    assert counts == [7, 7, *2 * [7 + len(keep)]]


def test_what_a_solver_begins_with_can_be_begun_with_again():
    """Outer variables that a solver was given are nobody's to use up."""
    begin = jnp.zeros(60)
    problem = Problem(
        lambda outer, inner, batch: row_losses(inner, batch).weighted(jnp.exp(outer[batch["row_id"]])), UPPER
    )
    solver = alternating(problem, optax.adam(0.1), optax.sgd(0.1), implicit(identity(1.0)), outer_start=begin)
    move = Train(problem, solver, Steps(2), PLAN, start="base")
    assert run(move, move).step == 4
    assert not begin.is_deleted()


def test_values_that_a_schedule_adopts_can_be_adopted_again():
    values = jnp.linspace(-1.0, 1.0, 60)
    move = Train(WEIGHED, BOTH_LEVELS, Steps(1), PLAN)
    state = run(move, Adopt(values), move)
    again = run(Adopt(values), state=state)
    chex.assert_trees_all_equal(again.solver.outer.inner, values)


def test_another_solver_does_not_go_on_with_a_state_in_silence():
    other = Train(WEIGHED, BOTH_LEVELS, Steps(3), PLAN)
    with pytest.raises(ValueError, match="the state of another solver"):
        run(train(3), Score("loss"), other, log=nothing_may_run)
    before = run(train(3))
    with pytest.raises(ValueError, match="the state of another solver"):
        run(other, state=before, log=nothing_may_run)
    fresh = dataclasses.replace(other, start="current")
    assert int(run(train(3), fresh, other).solver.inner.optimizer[0].count) == 6


def test_a_weighting_that_was_made_for_other_rows_is_refused_before_it_runs():
    problem = RowProblem(row_losses, given(jnp.ones(19)), UPPER)
    move = Train(problem, frozen(problem, optax.sgd(0.1)), Steps(3), PLAN, ("inner",))
    with pytest.raises(InputError, match="a table of 19 does not fit the 60"):
        run(Score("loss"), move, log=nothing_may_run)


def test_a_row_set_restricts_training():
    state = start().with_set("clean", np.arange(24, 60))  # the rows without fault
    clean = run(train(60, rows="clean"), Evaluate("test"), state=state)
    noisy = run(train(60), Evaluate("test"))
    assert clean.results["test"]["loss"] < noisy.results["test"]["loss"]
    assert clean.results["test"]["exact_match"] == 1.0


def test_eight_devices_train_to_the_model_of_one():
    results = [run(train(20), Score("loss"), devices=n) for n in (1, 8)]
    chex.assert_trees_all_close(*(jax.device_get(r.models["current"]) for r in results), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*(r.column("loss") for r in results), rtol=1e-4, atol=1e-5)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    move = dataclasses.replace(train(10), plan=BatchPlan(12, 8))
    with pytest.raises(InputError, match="12 rows"):
        run(move, devices=8)


@pytest.mark.parametrize("updates", [("inner", "outer"), ("outer",)])
def test_the_effective_sample_size_is_that_of_the_set(updates):
    """Almost equal weights of 16 rows are almost 16 effective rows, whatever the pool has besides."""
    logged = []
    state = start().with_set("few", np.arange(16))
    move = Train(WEIGHED, BOTH_LEVELS, Steps(1), PLAN, updates, rows="few")
    run(move, state=state, log=lambda step, numbers: logged.append(numbers))
    assert logged[0]["effective_sample_size"] == pytest.approx(16.0, rel=1e-4)


def test_any_number_of_devices_shares_the_rows_that_are_watched():
    three = context(devices=3)
    plan = dataclasses.replace(PLAN, rows=6, upper_rows=3)
    state = run_schedule((Round((dataclasses.replace(train(2), plan=plan),)),), start(), three)
    assert np.isfinite(state.upper_loss)
