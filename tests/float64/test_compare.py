"""The check of hypergradients: it accepts right ones, refuses wrong ones, and says why."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import (
    Curvature,
    EstimatorSettings,
    EvaluationPoint,
    Problem,
    check_hypergradient,
    conjugate_gradient,
    implicit,
)
from bilevel.core.hypergradient import Adjoint
from bilevel.core.reference import finite_difference_reference
from bilevel.weighting import entropy_penalty
from tests.float64.problems import problem
from tests.zoo import network, relative_error, row_problem, rows


def at(known, inner=None, **options):
    inner = known.inner if inner is None else inner
    return EvaluationPoint(
        known.outer, inner, known.lower_batch, known.upper_batch, known.optimizer, **options
    )


def zeros(known):
    return jax.tree.map(jnp.zeros_like, known.inner)


EXACT = EstimatorSettings("conjugate_gradient", iterations=12)


@functools.cache
def exact():
    """Its reference serves the other checks at this point."""
    known = problem("quadratic")
    return check_hypergradient(known.problem, EXACT, at(known))


def test_an_exact_estimate_at_a_solved_lower_level_is_accurate_and_needs_no_advice():
    known, found = problem("quadratic"), exact()
    assert found.verdict.startswith("Accurate")
    assert found.advice == ()
    assert found.relative_error < 1e-9
    assert found.cosine > 1 - 1e-12
    assert found.stationarity < 1e-12
    assert found.curvature == pytest.approx(1.0)  # the smallest eigenvalue, whatever the solver saw
    assert relative_error(found.estimate, known.reference) < 1e-9
    assert "dense" in str(found)


@pytest.mark.parametrize("directions", [4, 3])
def test_finite_differences_agree_with_the_dense_formula(directions):
    known = problem("quadratic")
    found = check_hypergradient(
        known.problem, EXACT, at(known), dense_limit=0, directions=directions, solve_steps=100
    )
    assert found.relative_error < 1e-6
    assert found.reference.uncertainty < 1e-6
    assert ("coordinates" if directions == 4 else "3 random") in found.reference.words


@functools.cache
def of_the_ridges():
    """Found at the optimum."""
    known = problem("breast_cancer, ridges")
    return check_hypergradient(known.problem, EstimatorSettings("conjugate_gradient"), at(known)).reference


def test_a_lower_level_that_is_not_solved_is_told_apart_from_a_bad_solver():
    known = problem("breast_cancer, ridges")
    away = check_hypergradient(known.problem, EstimatorSettings("dense"), at(known, zeros(known)))
    assert away.residual < 1e-9
    assert away.relative_error > 0.1
    assert away.convergence_error > 0.1
    assert any("Inner not converged" in line for line in away.advice)
    short = check_hypergradient(
        known.problem,
        EstimatorSettings("conjugate_gradient", iterations=2),
        at(known),
        reference=of_the_ridges(),
    )
    assert short.convergence_error < 1e-6
    assert any("increase iterations" in line for line in short.advice)
    assert not any("Inner" in line for line in short.advice)


def test_damping_that_biases_is_named():
    known = problem("quadratic")
    found = check_hypergradient(
        known.problem,
        EstimatorSettings("conjugate_gradient", iterations=12, damping=1.0),
        at(known),
        reference=exact().reference,
    )
    assert any("shortens flat directions by up to 50%" in line for line in found.advice)
    assert not found.verdict.startswith("Accurate")


def test_an_indefinite_hessian_is_flagged():
    known = problem("indefinite quadratic")
    found = check_hypergradient(known.problem, EXACT, at(known))
    assert found.verdict.startswith("Undecided")
    assert found.curvature == pytest.approx(-0.5, rel=1e-6)
    assert any("gauss_newton, or damping above 0.5" in line for line in found.advice)


@pytest.mark.parametrize("factor", [-1.0, 0.1])
def test_a_wrong_estimator_of_ones_own_is_found_out(factor):
    known, right = problem("quadratic"), conjugate_gradient(12)

    def solve(levels, point, upper_gradient, state):
        direction = right.solve(levels, point, upper_gradient, state)
        return direction._replace(q=optax.tree.scale(factor, direction.q))

    wrong = implicit(Adjoint(right.init, solve))
    accepted, refused = (
        check_hypergradient(known.problem, rule, at(known), reference=exact().reference)
        for rule in (implicit(right), wrong)
    )
    assert accepted.verdict.startswith("Accurate")
    assert refused.relative_error > 0.5
    assert not refused.verdict.startswith(("Accurate", "Close"))


@functools.cache
def trained_network():
    """A small network on weighted rows, a few Adam steps in."""
    rows_problem = row_problem(10)
    params = network(jax.random.key(0), dtype=jnp.float64)
    lower, upper = rows(1, 10, dtype=np.float64), rows(2, 6, dtype=np.float64)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    state, general = optimizer.init(params), rows_problem.general()
    outer = 0.3 * jax.random.normal(jax.random.key(1), (10,))

    @jax.jit
    def step(params, state):
        slope = jax.grad(lambda p: general.lower(outer, p, lower).value)(params)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    return rows_problem, EvaluationPoint(outer, params, lower, upper, optimizer, state)


@functools.cache
def one_step():
    """Its reference serves the other checks with this horizon."""
    rows_problem, point = trained_network()
    return check_hypergradient(rows_problem, "optimizer_aware", point, horizon=1, directions=10)


def test_a_horizon_of_one_step_is_what_optimizer_aware_claims():
    (rows_problem, point), found = trained_network(), one_step()
    assert found.verdict.startswith("Accurate")
    assert found.relative_error < 1e-5
    far = check_hypergradient(rows_problem, "optimizer_aware", point, horizon=30, directions=10)
    assert far.relative_error > 0.5
    assert any("leave out the curvature" in line for line in far.advice)
    wrong = check_hypergradient(
        rows_problem, "conjugate_gradient", point, horizon=1, directions=10, reference=one_step().reference
    )
    assert any("describes the optimum" in line for line in wrong.advice)


def test_an_outer_penalty_is_left_out_on_both_sides():
    rows_problem, point = trained_network()
    penalised = rows_problem._replace(outer_penalty=entropy_penalty(0.7, rows_problem.weighting))
    found = check_hypergradient(penalised, "optimizer_aware", point, horizon=1, directions=10)
    assert found.relative_error == one_step().relative_error


def test_a_penalty_settles_before_it_is_read():
    known = problem("breast_cancer, ridges")
    penalty = EstimatorSettings("penalty", gamma=100.0)
    settled, early = (
        check_hypergradient(known.problem, penalty, at(known), settle=settle, reference=of_the_ridges())
        for settle in (200, 1)
    )
    assert settled.cosine > 0.97
    assert early.relative_error > settled.relative_error
    assert any("increase settle" in line for line in early.advice)


def test_an_estimate_that_is_not_finite_is_said_to_be():
    known = problem("quadratic")

    def upper(outer, inner, batch):
        mean = known.problem.upper(outer, inner, batch)
        return mean.replace(total=mean.total + jnp.sum(jnp.sqrt(outer - outer)))

    found = check_hypergradient(Problem(known.problem.lower, upper), EXACT, at(known))
    assert found.verdict.startswith("Not finite")
    assert not found.finite


def test_what_an_estimator_refuses_is_refused_here_too():
    known = problem("quadratic")
    gauss_newton = implicit(conjugate_gradient(5, Curvature("gauss_newton")))
    with pytest.raises(ValueError, match="OutputLoss"):
        check_hypergradient(known.problem, gauss_newton, at(known))
    with pytest.raises(ValueError, match="smoothly"):
        check_hypergradient(known.problem, "optimizer_aware", at(known)._replace(optimizer=optax.lion(1e-3)))


def test_steps_of_differences_shrink_until_they_fit_the_curvature():
    def value(outer):
        return jnp.sin(3000.0 * outer), jnp.array(0.0)

    found = finite_difference_reference(value, "a sine", jnp.array(0.0), 1, jax.random.key(0))
    assert found.uncertainty < 0.01
    assert found.slopes == pytest.approx(3000.0, rel=0.01)


def test_an_estimator_of_another_objective_is_told_apart_from_a_wrong_one():
    rows_problem, point = trained_network()
    found = check_hypergradient(
        rows_problem,
        "penalty_single",
        point,
        horizon=1,
        settle=2,
        directions=10,
        reference=one_step().reference,
    )
    assert found.verdict.startswith("No hypergradient: it descends the weighted loss")
    assert not any("increase settle" in line for line in found.advice)
