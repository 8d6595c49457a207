"""Outer variables in parts: each moves alone, with its optimizer's state; what steps report of them."""

from __future__ import annotations

import chex
import jax
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, frozen, identity, implicit, penalty, population
from bilevel.weighting import by_part, exponentiated_gradient, product, row_logits
from tests.core.test_solvers import POOL, batches, compiled
from tests.zoo import network, row_losses, upper

SIZES = {"row_id": POOL}
WEIGHTING = product(rows=row_logits(), other=row_logits("sigmoid"))
PROBLEM = RowProblem(row_losses, WEIGHTING, upper)
RULES = by_part(rows=optax.adam(0.1), other=optax.adam(0.1))


def solver(outer=RULES):
    return alternating(PROBLEM, optax.sgd(0.1), outer, implicit(identity(0.1)))


@pytest.fixture(scope="module")
def stepped():
    """Steps of one solver, compiled once for each set of levels."""
    one = solver()
    begun = one.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    return begun, compiled(one)


def test_a_part_moves_alone_and_the_others_keep_variables_and_optimizer_state(stepped):
    begun, step = stepped
    state, _ = step(begun, *batches())
    both, _ = step(state, *batches(1))
    alone, report = step(state, *batches(1), updates=("outer.other",))
    for kind in ("inner", "optimizer"):
        now, before, all_moved = (getattr(s.outer, kind) for s in (alone, state, both))
        chex.assert_trees_all_equal(now["rows"], before["rows"])
        chex.assert_trees_all_close(now["other"], all_moved["other"], rtol=1e-6)
    assert float(optax.tree.norm(optax.tree.sub(alone.outer.inner, state.outer.inner))) > 0
    chex.assert_trees_all_equal(alone.inner, state.inner)
    assert set(report.diagnostics.parts) == {"rows", "other"}
    total = sum(float(x) ** 2 for x in report.diagnostics.parts.values()) ** 0.5
    assert total == pytest.approx(float(report.diagnostics.hypergradient_norm), rel=1e-5)


def test_steps_report_the_factors_of_a_products_weights(stepped):
    begun, step = stepped
    state, _ = step(begun, *batches())
    _, report = step(state, *batches(1))
    np.testing.assert_allclose(report.factors["rows"] * report.factors["other"], report.row_weights)
    assert np.ptp(report.factors["rows"]) > 0


def test_a_step_that_moves_no_outer_part_asks_nothing_of_the_upper_level():
    def refuse(outer, inner, batch):
        raise AssertionError

    trained = alternating(PROBLEM._replace(upper=refuse), optax.sgd(0.1), RULES, implicit(identity(0.1)))
    begun = trained.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    _, report = jax.eval_shape(lambda state: trained.step(state, *batches(), ("inner",)), begun)
    assert report.diagnostics is None


def test_all_parts_by_name_are_the_outer_variables():
    plain = solver(optax.adam(0.1))  # which could not freeze one of them
    begun = plain.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    jax.eval_shape(lambda state: plain.step(state, *batches(), ("outer.rows", "outer.other")), begun)


@pytest.mark.parametrize(
    ("updates", "rule", "message"),
    [
        (("outer.nothing",), RULES, "no 'outer.nothing': choose among inner, outer, outer.other, outer.rows"),
        (("both",), RULES, "no 'both'"),
        (("outer.rows",), optax.adam(0.1), "by_part"),
    ],
)
@pytest.mark.parametrize("members", [0, 1])
def test_parts_that_cannot_move_alone_are_refused(updates, rule, message, members):
    one = population(solver(rule), 1) if members else solver(rule)
    begun = one.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda state, *given: one.step(state, *given, updates), begun, *batches())


def test_a_part_begins_alike_whatever_stands_beside_it():
    drawing = row_logits()._replace(init=lambda key, sizes: (jax.random.normal(key, (3,)), ()))
    alone, beside = (
        product(**parts).init(jax.random.key(0), SIZES)[0]["drawn"]
        for parts in ({"drawn": drawing}, {"first": row_logits(), "drawn": drawing})
    )
    np.testing.assert_array_equal(alone, beside)


@pytest.mark.parametrize(
    "rules", [{"rows": optax.sgd(1.0)}, {"rows": optax.sgd(1.0), "more": optax.sgd(1.0)}]
)
def test_rules_and_parts_must_fit(rules):
    with pytest.raises(ValueError, match="other"):
        by_part(**rules).init(WEIGHTING.init(jax.random.key(0), SIZES)[0])


def test_rules_of_parts_get_the_last_batch():
    ruled = by_part(rows=exponentiated_gradient(0.1), other=optax.sgd(0.1))
    one = penalty(PROBLEM, optax.sgd(0.1), ruled, lambda step: 0.25)
    begun = one.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    jax.eval_shape(one.step, begun, *batches(lower_steps=2))


def test_a_frozen_solver_trains_and_moves_no_outer_variable():
    def refuse(outer, inner, batch):
        raise AssertionError

    baseline = frozen(PROBLEM._replace(upper=refuse), optax.sgd(0.1))
    begun = baseline.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    after, report = compiled(baseline)(begun, *batches())
    chex.assert_trees_all_equal(after.outer, begun.outer)
    assert float(optax.tree.norm(optax.tree.sub(after.inner.inner, begun.inner.inner))) > 0
    assert (report.upper, report.diagnostics) == (None, None)
    assert report.finite
