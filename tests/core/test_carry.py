"""Rows come and go: tables follow, new rows begin like average ones, everything else stays."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, Weighting, alternating, frozen, implicit, optimizer_aware, population
from bilevel.weighting import by_part, given, network, product, row_logits, signal_scorer
from tests.zoo import network as model
from tests.zoo import row_losses, upper

ROWS, QUESTIONS = 4, 2
SIZES = {"row_id": ROWS, "question_id": QUESTIONS}
SAME = {"row_id": np.arange(ROWS), "question_id": np.arange(QUESTIONS)}
MORE, CAME = {"row_id": 5, "question_id": QUESTIONS}, {**SAME, "row_id": np.array([3, -1, 0, 1, -1])}
LOGITS = jnp.array([0.5, -1.0, 2.0, 0.1])


def ages() -> Weighting:
    """One logit a row beside a memory of ages by row, of which new rows have 7, and a counter for all."""

    def init(key, sizes):
        rows = sizes["row_id"]
        return jnp.zeros(rows), {"age": jnp.full((rows, 2), 7.0), "all": jnp.zeros(3)}

    def weights(logits, memory, batch, losses):
        return row_logits().weights(logits, (), batch, losses)

    return row_logits()._replace(init=init, weights=weights, tables=("row_id", {"age": "row_id", "all": ""}))


def weighting() -> Weighting:
    return product(rows=ages(), questions=row_logits("sigmoid", by="question_id"))


def solver(weights=None, outer=None):
    outer = outer or by_part(rows=optax.adam(0.1), questions=optax.sgd(0.1, momentum=0.9))
    problem = RowProblem(row_losses, weights or weighting(), upper)
    return alternating(problem, optax.sgd(0.1), outer, implicit(optimizer_aware()))


def begun(solver, sizes=SIZES):
    """A state in which no two rows are alike."""
    state = solver.init(jax.random.key(0), model(jax.random.key(1)), sizes)

    def marked(x):
        return x + 0.1 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape) if x.dtype == jnp.float32 else x

    return state.replace(outer=jax.tree.map(marked, state.outer), memory=jax.tree.map(marked, state.memory))


def test_rows_that_stay_where_they_are_leave_the_state_as_it_is():
    state = begun(solver())
    chex.assert_trees_all_equal(solver().carry(state, SIZES, SAME), state)


def test_tables_memory_and_moments_follow_their_rows():
    state = begun(solver())
    after = solver().carry(state, MORE, CAME)
    for now, before in ((0, 3), (2, 0), (3, 1)):
        np.testing.assert_array_equal(after.memory["rows"]["age"][now], state.memory["rows"]["age"][before])
        for moment in ("mu", "nu"):
            tables = [getattr(s.outer.optimizer["rows"][0], moment) for s in (after, state)]
            np.testing.assert_array_equal(tables[0][now], tables[1][before])
    new = np.array([1, 4])
    np.testing.assert_array_equal(after.memory["rows"]["age"][new], np.full((2, 2), 7.0))
    np.testing.assert_array_equal(after.outer.inner["rows"][new], 0.0)
    np.testing.assert_array_equal(after.outer.optimizer["rows"][0].mu[new], 0.0)
    # Questions stay, and what belongs to no row.
    chex.assert_trees_all_equal(after.outer.inner["questions"], state.outer.inner["questions"])
    chex.assert_trees_all_equal(after.outer.optimizer["questions"], state.outer.optimizer["questions"])
    np.testing.assert_array_equal(after.memory["rows"]["all"], state.memory["rows"]["all"])
    chex.assert_trees_all_equal(after.inner, state.inner)
    assert after.outer.optimizer["rows"][0].count == state.outer.optimizer["rows"][0].count


def test_a_new_row_weighs_what_an_average_row_weighs():
    part = row_logits()
    only = solver(part, optax.sgd(0.1))
    state = begun(only)
    state = state.replace(outer=state.outer._replace(inner=LOGITS))
    after = only.carry(state, {"row_id": 5}, {"row_id": np.array([0, 1, 2, 3, -1])})
    before = part.weights(LOGITS, (), {"row_id": jnp.arange(4)}, None)
    weights = part.weights(after.outer.inner, (), {"row_id": jnp.arange(5)}, None)
    np.testing.assert_allclose(weights[:4], before, rtol=1e-6)
    np.testing.assert_allclose(weights[4], 1.0, rtol=1e-6)


def test_members_of_a_population_follow_too():
    many = population(solver(), 2, reset_every=2)
    state = many.init(jax.random.key(0), model(jax.random.key(1)), SIZES)
    chex.assert_trees_all_equal(many.carry(state, SIZES, SAME), state)
    after = many.carry(state, MORE, CAME)
    for states, copies in ((after.extra.members, 2), (after.extra.fresh, 1)):
        assert states.memory["rows"]["age"].shape == (copies, 5, 2)
        assert states.outer.optimizer["rows"][0].mu.shape == (copies, 5)
    assert after.outer.inner["rows"].shape == (5,)


def test_a_step_goes_on_after_rows_came():
    one = solver()
    after = one.carry(begun(one), MORE, CAME)
    batch = {
        "x": np.ones((1, 2, 3), np.float32),
        "y": np.ones((1, 2), np.float32),
        "count": np.ones((1, 2), np.float32),
        "row_id": np.array([[4, 0]]),
        "question_id": np.array([[1, 0]]),
    }
    lower = {name: value[None] for name, value in batch.items()}
    shapes = jax.eval_shape(one.step, after, lower, batch)[0]
    assert shapes.outer.inner["rows"].shape == (5,)


@pytest.mark.parametrize(
    ("sizes", "came_from", "message"),
    [
        (SIZES, {"row_id": SAME["row_id"]}, "question_id"),
        ({"row_id": 4}, SAME, "question_id"),
        (SIZES, {**SAME, "row_id": np.array([0, 1, 2, 4])}, r"\[-1, 4\)"),
        (SIZES, {**SAME, "row_id": np.array([0, 1, 2, -2])}, r"\[-1, 4\)"),
        (SIZES, {**SAME, "row_id": np.array([0, 1])}, "4 integers"),
        (SIZES, {**SAME, "row_id": np.zeros(4)}, "4 integers"),
    ],
)
def test_rows_that_cannot_have_come_are_refused(sizes, came_from, message):
    with pytest.raises(ValueError, match=message):
        solver().carry(begun(solver()), sizes, came_from)


@pytest.mark.parametrize(
    "table", [given(jnp.ones(ROWS)), network(signal_scorer(jnp.ones((ROWS, 1))))], ids=["given", "signals"]
)
def test_tables_that_do_not_fit_the_rows_are_refused(table):
    baseline = frozen(RowProblem(row_losses, table, upper), optax.sgd(0.1))
    state = baseline.init(jax.random.key(0), model(jax.random.key(1)), SIZES)
    for bad in (
        lambda: baseline.init(jax.random.key(0), (), MORE),
        lambda: baseline.carry(state, MORE, CAME),
    ):
        with pytest.raises(ValueError, match="a table of 4 does not fit the 5"):
            bad()
