"""Training as a layer: gradients of what a user writes around it, against central differences, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import implicit_layer
from bilevel.core.adjoint import conjugate_gradient, identity, neumann, optimizer_aware
from tests.zoo import finite_difference, network, predict, relative_error, rows

ROWS = rows(1, 8, dtype=np.float64)
FRESH = rows(2, 5, dtype=np.float64)
START = network(jax.random.key(0), dtype=jnp.float64)
OUTER = {"ridge": jnp.asarray(-1.0), "rows": 0.3 * jax.random.normal(jax.random.key(1), (8,))}
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-2, eps=1e-3))


def lower(outer, inner, batch):
    weights = jax.nn.sigmoid(outer["rows"][batch["row_id"]])
    strength = jnp.exp(outer["ridge"])
    error = predict(inner, batch["x"]) - batch["y"]
    return jnp.mean(weights * error**2) + strength * optax.tree.norm(inner, squared=True)


def upper(inner):
    return jnp.mean((predict(inner, FRESH["x"]) - FRESH["y"]) ** 2)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.05, momentum=0.9), ADAM], ids=["momentum", "clipped adam"])
def test_a_layer_is_differentiated_through_its_steps_and_to_its_start(optimizer):
    train = implicit_layer(lower, optimizer, steps=5)

    def objective(arguments):
        return upper(train(*arguments, ROWS))

    found = jax.jit(jax.grad(objective))((OUTER, START))
    assert relative_error(found, finite_difference(objective, (OUTER, START))) < 1e-7


def test_batches_may_differ_from_step_to_step():
    stacked = {name: np.stack([ROWS[name], ROWS[name][::-1]]) for name in ("x", "y", "row_id")}
    train = implicit_layer(lower, optax.sgd(0.1))

    def by_hand(outer):
        inner = START
        for k in range(2):
            batch = {name: value[k] for name, value in stacked.items()}
            gradient = jax.grad(lower, 1)(outer, inner, batch)
            inner = jax.tree.map(lambda x, g: x - 0.1 * g, inner, gradient)
        return upper(inner)

    found = jax.jit(jax.grad(lambda outer: upper(train(outer, START, stacked))))(OUTER)
    assert relative_error(found, jax.jit(jax.grad(by_hand))(OUTER)) < 1e-12


@pytest.mark.parametrize(
    "rule", [conjugate_gradient(40), neumann(400)], ids=["conjugate_gradient", "neumann"]
)
def test_a_solved_layer_has_the_derivative_of_its_solution(rule):
    train = jax.jit(implicit_layer(lower, optax.sgd(0.2, momentum=0.9), 100, rule, tolerance=1e-12))

    def objective(outer):
        return upper(train(outer, START, ROWS))

    assert relative_error(jax.jit(jax.grad(objective))(OUTER), finite_difference(objective, OUTER)) < 1e-6
    moved = jax.jit(jax.grad(lambda start: upper(train(OUTER, start, ROWS))))(START)
    assert float(optax.tree.norm(moved)) == 0.0


def test_one_step_rules_differentiate_the_last_step():
    one = implicit_layer(lower, ADAM, 1)
    aware = implicit_layer(lower, ADAM, 1, optimizer_aware())
    plain = implicit_layer(lower, optax.sgd(0.1), 1, identity(0.1))
    through = {
        name: jax.jit(jax.grad(lambda outer, layer=layer: upper(layer(outer, START, ROWS))))(OUTER)
        for name, layer in {"steps": one, "aware": aware, "plain": plain}.items()
    }
    assert relative_error(through["aware"], through["steps"]) < 1e-12
    by_differences = finite_difference(lambda outer: upper(plain(outer, START, ROWS)), OUTER)
    assert relative_error(through["plain"], by_differences) < 1e-7


def coupled(strength):
    """Three levels in three, two and three variables: top moves a, middle b(a), bottom c(a, b)."""
    mix = jnp.asarray(np.random.default_rng(3).normal(size=(3, 2)))

    def bottom(outer, c, batch):
        a, b = outer
        return jnp.sum((c - jnp.tanh(mix @ b) - a) ** 2) + 0.1 * jnp.sum(c**4) + strength * jnp.sum(c * a)

    def middle(c, a, b):
        return jnp.sum((mix.T @ c - b) ** 2) + 0.3 * jnp.sum((b - a[:2]) ** 2)

    def top(a, b, c):
        return jnp.sum((b - 1.0) ** 2) + jnp.sum(jnp.sin(c)) + 0.1 * jnp.sum(a**2)

    return bottom, middle, top


@pytest.mark.parametrize("rules", ["steps", "solved"])
def test_three_levels(rules):
    """A layer whose lower loss trains a layer of its own, against differences of the whole program."""
    bottom, middle, top = coupled(0.2)
    solver = conjugate_gradient(10) if rules == "solved" else None
    steps = (5, 4) if rules == "steps" else (60, 60)
    solve_bottom = implicit_layer(bottom, optax.sgd(0.1, momentum=0.5), steps[0], solver)

    def middle_loss(a, b, batch):
        return middle(solve_bottom((a, b), jnp.zeros(3), {}), a, b)

    solve_middle = implicit_layer(middle_loss, optax.sgd(0.1, momentum=0.5), steps[1], solver)

    def objective(a):
        b = solve_middle(a, jnp.zeros(2), {})
        return top(a, b, solve_bottom((a, b), jnp.zeros(3), {}))

    a = jnp.asarray([0.3, -0.5, 0.8])
    found = jax.jit(jax.grad(objective))(a)
    assert relative_error(found, finite_difference(objective, a)) < (1e-7 if rules == "steps" else 1e-6)


def test_layers_refuse_what_has_no_derivative():
    with pytest.raises(ValueError, match="needs a rule"):
        implicit_layer(lower, optax.sgd(0.1), 3, tolerance=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        implicit_layer(lower, optax.sgd(0.1), 0)
    with pytest.raises(ValueError, match="depend smoothly"):
        implicit_layer(lower, optax.lion(1e-3), 3)(OUTER, START, ROWS)


@pytest.mark.parametrize("rule", [None, conjugate_gradient(40)], ids=["steps", "conjugate_gradient"])
def test_integers_and_absent_values_among_the_outer_variables_are_constants(rule):
    def lower_of_power(outer, inner, batch):
        return lower(outer["moved"], inner, batch) * outer["times"] / 2

    plain = implicit_layer(lower, optax.sgd(0.1), 6, rule)
    train = implicit_layer(lower_of_power, optax.sgd(0.1), 6, rule)

    def objective(moved):
        return upper(train({"moved": moved, "times": jnp.int32(2), "none": None}, START, ROWS))

    found = jax.jit(jax.grad(objective))(OUTER)
    expected = jax.jit(jax.grad(lambda moved: upper(plain(moved, START, ROWS))))(OUTER)
    assert relative_error(found, expected) < 1e-10


def test_integers_among_the_inner_variables_are_refused_by_name():
    train = implicit_layer(lambda outer, inner, batch: inner["w"] ** 2, optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match="inner variables: n is int32, which no gradient moves"):
        train(0.0, {"w": jnp.zeros(()), "n": jnp.int32(3)}, {})
