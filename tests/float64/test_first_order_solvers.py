"""Value-gap, single-loop and zeroth-order solvers on a problem whose bilevel optimum is known, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import (
    Mean,
    Problem,
    alternating,
    amigo,
    dynamic_multiplier,
    evolution_strategies,
    fixed_multiplier,
    growing_multiplier,
    penalty,
    pzobo,
    soba,
    unroll,
    value_gap,
)
from tests.zoo import finite_difference, relative_error

RANDOM = np.random.default_rng(0)
LOWER = jnp.asarray(np.cov(RANDOM.normal(size=(3, 9))) + np.eye(3))
UPPER = jnp.asarray(np.cov(RANDOM.normal(size=(3, 9))) + np.eye(3))
MAP = jnp.asarray(RANDOM.normal(size=(3, 2)))
BATCH = {"zero": np.zeros((1, 1))}


def lower(outer, inner, batch):
    gap = inner - MAP @ outer
    return Mean(0.5 * gap @ LOWER @ gap, jnp.ones(()))


def upper(outer, inner, batch):
    gap = inner - 1.0
    return Mean(0.5 * gap @ UPPER @ gap + 0.2 * jnp.sum(outer**2), jnp.ones(()))


PROBLEM = Problem(lower, upper)


def reduced(outer):
    return upper(outer, MAP @ outer, BATCH).value


OPTIMUM = -jnp.linalg.solve(jax.hessian(reduced)(jnp.zeros(2)), jax.grad(reduced)(jnp.zeros(2)))


def solved(solver, steps, lower_steps=1):
    lower_batches = {"zero": np.zeros((lower_steps, 1, 1))}

    @jax.jit
    def run(state):
        return jax.lax.scan(
            lambda state, _: (solver.step(state, lower_batches, BATCH)[0], None), state, None, length=steps
        )[0]

    state = run(solver.init(jax.random.key(0), jnp.zeros(3)))
    assert int(state.skipped) == 0
    return state.outer.inner


START, INNER, OUTER = jnp.asarray([0.5, -0.5]), optax.sgd(0.2), optax.sgd(0.02)


@pytest.mark.parametrize(
    ("solver", "steps", "lower_steps"),
    [
        (soba(PROBLEM, INNER, OUTER, step_size=0.2, outer_start=START), 4000, 1),
        (soba(PROBLEM, INNER, OUTER, outer_start=START), 4000, 2),
        (amigo(PROBLEM, INNER, OUTER, linear_steps=3, step_size=0.2, outer_start=START), 2000, 1),
        (alternating(PROBLEM, INNER, OUTER, unroll(), outer_start=START), 1000, 80),
        (alternating(PROBLEM, INNER, OUTER, evolution_strategies(2, 1e-3), outer_start=START), 1000, 80),
        (alternating(PROBLEM, INNER, OUTER, pzobo(2, 1e-7), outer_start=START), 1000, 80),
    ],
    ids=["soba", "soba, step of its own", "amigo", "unroll", "evolution strategies", "pzobo"],
)
def test_solvers_of_the_hypergradient_reach_the_bilevel_optimum(solver, steps, lower_steps):
    assert relative_error(solved(solver, steps, lower_steps), OPTIMUM) < 1e-6


@pytest.mark.parametrize("name", ["F2SA", "V-PBGD"])
def test_penalty_solvers_come_as_near_as_their_multiplier(name):
    errors = []
    for gamma in (10.0, 100.0):
        if name == "F2SA":
            outer = optax.sgd(0.02 * (1 + gamma))  # outer gradients carry the share 1 / (1 + gamma)
            solver = penalty(PROBLEM, INNER, outer, growing_multiplier(gamma, 0.0), outer_start=START)
            errors.append(relative_error(solved(solver, 4000, 40), OPTIMUM))
        else:  # joint descent: both levels feel the same stiff function, so both take its small steps
            solver = value_gap(PROBLEM, INNER, optax.sgd(0.1), fixed_multiplier(gamma), outer_start=START)
            errors.append(relative_error(solved(solver, 20000, 40), OPTIMUM))
    assert errors[1] < 0.01
    assert errors[1] < 0.2 * errors[0]


def test_bome_reaches_the_bilevel_optimum_without_a_multiplier():
    errors = []
    for rate, steps in ((0.08, 1000), (0.02, 4000)):  # what is left of the gap is of the order of the step
        solver = value_gap(
            PROBLEM, optax.sgd(rate), optax.sgd(rate), dynamic_multiplier(0.5), outer_start=START
        )
        errors.append(relative_error(solved(solver, steps, round(5 / rate)), OPTIMUM))
    assert errors[1] < 0.03
    assert errors[1] < 0.5 * errors[0]


def test_the_dynamic_multiplier_keeps_the_gap_falling():
    from bilevel.core.solver.value_gap import Slopes

    multiplier = dynamic_multiplier(0.5)
    for alignment, expected in ((-3.0, 2.0), (0.0, 0.5), (1.5, 0.0)):
        found = multiplier(Slopes(jnp.zeros((), int), jnp.asarray(2.0), jnp.asarray(alignment))).gap
        assert float(found) == pytest.approx(expected)
        # < direction, grad gap > = alignment + multiplier |grad gap|^2 is at least eta |grad gap|^2
        assert alignment + float(found) * 2.0 >= 0.5 * 2.0 - 1e-12
    assert float(multiplier(Slopes(jnp.zeros((), int), jnp.asarray(0.0), jnp.asarray(0.0))).gap) == 0.0


def test_a_growing_multiplier_is_the_share_of_its_step():
    share = growing_multiplier(1.0, 0.5)
    assert [float(share(jnp.asarray(step))) for step in (0, 2)] == [0.5, pytest.approx(1 / 3)]


def test_one_pass_of_soba_holds_gradient_hessian_and_cross_product():
    """The first outer step follows q = 0, the second the q that one step on the linear system made."""
    solver = soba(PROBLEM, optax.sgd(0.0), optax.sgd(1.0), step_size=0.1, damping=0.3, outer_start=START)
    lower_batches = {"zero": np.zeros((1, 1, 1))}
    inner = jnp.asarray([0.3, 0.1, -0.2])
    state, _ = solver.step(solver.init(jax.random.key(0), inner), lower_batches, BATCH)
    direct = finite_difference(lambda outer: upper(outer, inner, BATCH).value, START)
    assert relative_error(START - state.outer.inner, direct) < 1e-7
    slope = UPPER @ (inner - 1.0)
    q = 0.1 * slope
    assert relative_error(state.extra.q, q) < 1e-12
    after, report = solver.step(state, lower_batches, BATCH)
    assert relative_error(after.extra.q, q - 0.1 * ((LOWER + 0.3 * jnp.eye(3)) @ q - slope)) < 1e-12

    def slope_along_q(outer):
        return jax.grad(lambda inner: lower(outer, inner, BATCH).value)(inner) @ q

    at = state.outer.inner
    expected = finite_difference(lambda outer: upper(outer, inner, BATCH).value, at) - finite_difference(
        slope_along_q, at
    )
    assert relative_error(at - after.outer.inner, expected) < 1e-7
    assert float(report.diagnostics.residual) > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: soba(PROBLEM, INNER, OUTER, step_size=-1.0, outer_start=START),
        lambda: soba(PROBLEM, INNER, OUTER, step_size=0.1, damping=-1.0, outer_start=START),
        lambda: dynamic_multiplier(0.0),
        lambda: growing_multiplier(-1.0, 0.0),
        lambda: evolution_strategies(samples=0),
        lambda: pzobo(radius=0.0),
        lambda: unroll(last_steps=0),
        lambda: unroll("forward", checkpoint=True),
    ],
)
def test_options_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match=r"must be|option of mode"):
        make()
