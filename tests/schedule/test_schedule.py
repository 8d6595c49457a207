from __future__ import annotations

import dataclasses
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import RowLosses, RowProblem, frozen, penalty
from bilevel.data import ArrayRows, EncodedRows
from bilevel.errors import InputError
from bilevel.methods import BDSSettings, TrainingSettings, bds, uniform_tuning
from bilevel.model import Model
from bilevel.objectives import mean_loss
from bilevel.schedule import (
    BatchPlan,
    Choose,
    Evaluate,
    Keep,
    NonFiniteError,
    Passes,
    Round,
    RunState,
    Score,
    Steps,
    Train,
    Weigh,
    lower,
    repeat,
    run_schedule,
    top_share,
)
from bilevel.schedule.choose import Choice
from bilevel.weighting import row_logits, uniform, visited_sgd
from tests.schedule.toy import (
    MODEL,
    UPPER,
    context,
    data,
    encoded,
    nothing_may_run,
    row_losses,
    run,
    start,
    train,
)


def test_scores_and_evaluations_cover_every_row_once_whatever_the_batch():
    state = run(train(10), Score("loss"), Evaluate("test"))
    pool, test = data()["pool"], data()["test"]
    expected = row_losses(state.models["current"], pool.batch(np.arange(60))).means
    np.testing.assert_allclose(state.column("loss"), expected, rtol=1e-5)
    losses, matched = MODEL.evaluate(state.models["current"], test.batch(np.arange(37)))
    assert state.results["test"]["loss"] == pytest.approx(float(np.mean(losses.means)), rel=1e-5)
    assert state.results["test"]["exact_match"] == pytest.approx(float(np.mean(matched)))


def test_scores_of_a_set_leave_what_is_known_of_the_other_rows():
    state = run(Score("loss"), Choose(lambda choice: np.array([3, 50]), into="some"))
    state = run(train(10), Score("loss", rows="some"), state=state)
    column = state.signals["loss"]
    assert np.flatnonzero(column.values != np.log(6).astype(np.float32)).tolist() == [3, 50]
    assert np.flatnonzero(column.rounds).tolist() == [3, 50]
    alone = run(Score("", rows="some"), state=state).signals[""]
    assert np.flatnonzero(~np.isnan(alone.values)).tolist() == [3, 50]
    assert np.flatnonzero(alone.rounds >= 0).tolist() == [3, 50]


def test_selection_keeps_the_heaviest_rows_first():
    weight = np.full(60, 0.1)
    weight[[7, 40, 3]] = 3.0, 0.5, 2.0
    state = start().with_signal("weight", weight)
    kept = run(Choose(top_share("weight", 0.05), into="selected", signals=("weight",)), state=state)
    assert kept.rows("selected").tolist() == [7, 3, 40]


def test_rules_draw_by_the_seed_and_the_round():
    def some(choice: Choice) -> np.ndarray:
        return choice.rng.choice(len(choice.dataset), 5, replace=False)

    def chosen(seed: int) -> list[list[int]]:
        state, found = start(), []
        for _ in range(2):
            state = run_schedule((Round((Choose(some, into="some"),)),), state, context(seed))
            found.append(state.rows("some").tolist())
        return found

    assert chosen(0) == chosen(0)
    assert chosen(0)[0] != chosen(0)[1]
    assert chosen(0) != chosen(1)


def test_rules_that_choose_other_rows_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"outside 0 \.\. 59"):
        run(Choose(lambda choice: np.array([60]), into="some"))


def test_a_model_is_kept_while_it_is_the_best():
    state, kept = start(), []
    for loss in (2.0, 1.0, 1.5):
        state = dataclasses.replace(state, models=state.models | {"current": {"loss": jnp.asarray(loss)}})
        state = run(
            Keep("best", when=lower("test")), Keep("last"), state=state.with_result("test", {"loss": loss})
        )
        kept.append((float(state.models["best"]["loss"]), float(state.models["last"]["loss"])))
    assert kept == [(2.0, 2.0), (1.0, 1.0), (1.0, 1.5)]
    assert state.results["kept best: test"] == {"loss": 1.0}


def test_rounds_are_passed_over_once_enough_is_enough():
    found = run_schedule(
        repeat(5, lambda number: (train(number + 1),), until=lambda state: state.step >= 3),
        start(),
        context(),
    )
    assert (found.step, found.round) == (3, 5)


def test_a_schedule_that_reads_what_nobody_writes_is_refused_before_it_runs():
    choose = Choose(top_share("weight", 0.5), into="selected", signals=("weight",))
    with pytest.raises(ValueError, match="round 1: Choose reads signal:weight"):
        run(train(10), choose, log=nothing_may_run)
    with pytest.raises(ValueError, match="data:exam"):
        run(Evaluate("exam"), log=nothing_may_run)
    with pytest.raises(ValueError, match="Weigh reads solver"):
        run(Weigh(uniform()), log=nothing_may_run)
    with pytest.raises(ValueError, match="reads set:chosen"):
        run(train(rows="chosen"), log=nothing_may_run)


def test_a_set_of_other_rows_is_refused_before_it_runs_unless_it_is_chosen_anew():
    state = dataclasses.replace(start().with_set("some", np.arange(20)), data=data(seed=1))
    with pytest.raises(ValueError, match="'some' is about other rows than 'pool' now holds"):
        run(train(rows="some"), state=state, log=nothing_may_run)
    run(Choose(lambda choice: np.arange(20), into="some"), train(rows="some"), state=state)


def poisoned() -> EncodedRows:
    """Row 7 holds a token beyond the vocabulary's, for which `nan_at_token` gives no number."""
    rows = encoded(60, 0)
    tokens = rows.tokens.copy()
    tokens[7, 0] = 6
    return dataclasses.replace(rows, tokens=tokens)


def nan_at_token(params, batch):
    losses = row_losses(params, batch)
    return losses.replace(total=losses.total + np.nan * (batch["tokens"][:, 0] == 6) * (losses.count > 0))


BROKEN = RowProblem(nan_at_token, uniform(), UPPER)
BROKEN_SOLVER = frozen(BROKEN, optax.adam(0.1))


def nan_training(steps: int, **options) -> Train:
    return Train(BROKEN, BROKEN_SOLVER, Steps(steps), BatchPlan(15, 8), ("inner",), **options)


def test_a_row_without_a_finite_loss_is_skipped_and_counted():
    logged = []
    state = run(
        nan_training(40), state=start(pool=poisoned()), log=lambda step, numbers: logged.append(numbers)
    )
    assert logged[-1]["skipped_steps"] == 10  # one batch of four holds the row
    assert all(np.isfinite(numbers["lower_loss"]) for numbers in logged)
    assert np.all(np.isfinite(state.models["current"]["table"]))


def test_too_many_skipped_steps_end_the_run_with_the_row():
    state = start(pool=poisoned()).with_set("first", np.arange(15))
    with pytest.raises(NonFiniteError, match=r"loss is not finite.*: toy:8\."):
        run(nan_training(20, rows="first"), state=state, patience=5)


def test_metrics_speak_of_both_levels():
    logged = {}
    training = TrainingSettings(steps=40, batch_rows=16, upper_rows=8, learning_rate=0.1)
    found = bds(MODEL, data(), training=training, settings=BDSSettings(outer_warmup=10))
    run_schedule(found.schedule, start(), context(log=lambda step, numbers: logged.update({step: numbers})))
    assert sorted(logged) == [10, 20, 30, 40]
    assert not {"effective_sample_size", "hypergradient_norm"} & set(logged[10])  # the weights are frozen
    assert 0 < logged[40]["effective_sample_size"] < 60.0
    assert logged[40]["hypergradient_norm"] > 0
    assert logged[40]["upper_loss"] < logged[10]["upper_loss"]


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
    training = TrainingSettings(steps=5, batch_rows=16, upper_rows=8, learning_rate=0.1)
    state = run_schedule(uniform_tuning(MODEL, data(), training=training).schedule, start(), context())
    np.testing.assert_array_equal(state.column("weight"), np.ones(60))


def test_rows_that_are_no_text_go_through_every_move():
    rng = np.random.default_rng(0)
    rows = {
        name: ArrayRows({"x": rng.normal(size=(count, 3)).astype(np.float32)})
        for name, count in (("pool", 40), ("validation", 8), ("test", 9))
    }

    def losses(params, batch):
        count = (batch["row_id"] >= 0).astype(jnp.float32)
        return RowLosses(count * jnp.sum((batch["x"] - params) ** 2, -1), count)

    problem = RowProblem(losses, row_logits("sigmoid"), mean_loss(losses))
    solver = penalty(problem, optax.adam(0.1), visited_sgd(0.1), optax.constant_schedule(0.5), copies=1)
    plan = BatchPlan(16, 8)
    moves = (
        Score("loss"),
        Choose(top_share("loss", 0.5), into="chosen", signals=("loss",)),
        Train(problem, solver, Passes(1), plan, rows="chosen"),
        Weigh(problem.weighting),
        Evaluate(),
    )
    begun = RunState(models={"base": jnp.zeros(3), "current": jnp.zeros(3)}, data=rows)
    settings = replace(context(), model=Model(losses, jnp.zeros(3)))
    state = run_schedule((Round(moves),), begun, settings)
    assert np.flatnonzero(state.column("weight") != 1.0).tolist() == sorted(state.rows("chosen").tolist())
    assert set(state.results["test"]) == {"loss"}
    packed = Train(problem, solver, Steps(1), replace(plan, packing="on"))
    with pytest.raises(InputError, match="packing is for rows of tokens"):
        run_schedule((Round((packed,)),), begun, settings)
