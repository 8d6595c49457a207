"""What a step saw and remembers; the outer penalty's factor; directions where the upper level is flat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import (
    Mean,
    Problem,
    RowProblem,
    Weighting,
    alternating,
    fixed_multiplier,
    identity,
    implicit,
    penalty,
    soba,
    value_gap,
)
from bilevel.weighting import entropy_penalty, loss_scorer, row_logits
from bilevel.weighting import network as network_weighting
from tests.core.test_solvers import POOL, SIZES, batches, compiled
from tests.zoo import network, row_losses, row_problem, upper

SHARE = 0.25


@pytest.mark.parametrize(("scale_outer", "factor"), [(True, SHARE), (False, 1.0)])
def test_the_outer_penalty_is_scaled_as_the_upper_level_is(scale_outer, factor):
    def descended(outer_penalty):
        solver = penalty(
            row_problem(POOL, outer_penalty=outer_penalty),
            optax.sgd(0.1),
            optax.sgd(1.0),
            lambda step: SHARE,
            scale_outer=scale_outer,
        )
        state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
        return compiled(solver)(state, *batches())[0].outer.inner

    added = descended(None) - descended(lambda outer, memory, batch, losses: 0.5 * jnp.sum(outer))
    np.testing.assert_allclose(added, 0.5 * factor, rtol=1e-5)


def test_a_flat_upper_level_divides_by_no_zero():
    def lower(outer, inner, batch):
        return Mean(jnp.sum((inner - outer) ** 2), 1)

    def flat(outer, inner, batch):
        return Mean(0.0 * jnp.sum(inner), 1)

    solver = soba(Problem(lower, flat), optax.sgd(0.1), optax.sgd(0.1), outer_start=jnp.ones(2))
    nothing = {"none": jnp.zeros((1, 1))}
    lower_batches = {"none": jnp.zeros((1, 1, 1))}
    _, report = solver.step(solver.init(jax.random.key(0), jnp.zeros(2)), lower_batches, nothing)
    assert report.finite
    assert np.isfinite(report.diagnostics.stationarity)
    assert np.isfinite(report.diagnostics.residual)


def recording() -> Weighting:
    """A memory of what the last step saw; -1 stands for no value."""

    def init(key, sizes):
        return jnp.zeros(POOL), (jnp.zeros((1, 8)), jnp.zeros((1, 8)), jnp.zeros((), jnp.int32))

    def update(memory, seen):
        none = jnp.full((1, 8), -1.0)
        value = none if seen.value_losses is None else seen.value_losses.means
        return seen.losses.means, value, jnp.asarray(seen.step)

    return row_logits()._replace(
        init=init,
        weights=lambda outer, memory, batch, losses: row_logits().weights(outer, (), batch, losses),
        update=update,
    )


@pytest.mark.parametrize("name", ["penalty", "penalty, one copy", "value_gap", "soba", "alternating"])
def test_what_a_step_saw_is_remembered(name):
    problem = RowProblem(row_losses, recording(), upper)
    given = (problem, optax.sgd(0.1), optax.sgd(0.1))
    solver = {
        "penalty": lambda: penalty(*given, lambda step: SHARE),
        "penalty, one copy": lambda: penalty(*given, lambda step: SHARE, copies=1),
        "value_gap": lambda: value_gap(*given, fixed_multiplier(1.0)),
        "soba": lambda: soba(*given),
        "alternating": lambda: alternating(*given, implicit(identity(0.1))),
    }[name]()
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    state = state.replace(step=state.step + 3)
    lower, upper_batch = batches()
    after, report = compiled(solver)(state, lower, upper_batch)
    losses, value, step = after.memory
    assert int(step) == 3
    np.testing.assert_allclose(losses, report.row_losses.means, rtol=1e-6)
    if name == "penalty":  # the copies have not parted yet
        np.testing.assert_allclose(value, losses, rtol=1e-6)
    elif name == "value_gap":  # a step on
        assert float(jnp.mean(value)) < float(jnp.mean(losses))
        assert float(jnp.min(value)) >= 0
    else:
        np.testing.assert_array_equal(value, -1.0)


def test_a_step_penalises_the_entropy_of_weights_that_read_losses():
    reading = network_weighting(loss_scorer("relative", 3))
    problem = row_problem(POOL, weighting=reading, outer_penalty=entropy_penalty(1.0, reading))
    solver = penalty(problem, optax.sgd(0.1), optax.sgd(0.1), lambda step: SHARE)
    state = solver.init(jax.random.key(0), network(jax.random.key(1)))
    for pieces in (1, 2):
        jax.eval_shape(solver.step, state, *batches(pieces=pieces))


@pytest.mark.parametrize("level", ["outer", "inner"])
def test_variables_that_no_gradient_moves_are_refused_by_name(level):
    def loss(outer, inner, batch):
        return Mean(outer["a"] * inner["a"], 1)

    plain = {"a": jnp.ones(())}
    given = {"outer": plain, "inner": plain} | {level: {**plain, "deep": {"n": jnp.int32(2)}}}
    problem = Problem(loss, loss)
    solver = alternating(
        problem, optax.sgd(0.1), optax.sgd(0.1), implicit(identity(0.1)), outer_start=given["outer"]
    )
    with pytest.raises(ValueError, match=f"{level} variables: deep/n is int32, which no gradient moves"):
        solver.init(jax.random.key(0), given["inner"])
