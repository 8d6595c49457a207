"""Every estimator against central differences of what it claims to differentiate, in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, identity, implicit, optimizer_aware, penalty
from bilevel.core.problem import Problem
from bilevel.weighting import entropy_penalty, product, row_logits
from tests.zoo import finite_difference, in_micro_batches, network, relative_error, row_losses, rows, upper

POOL, BATCH = 10, 6
SIZES = {"row_id": POOL}

WEIGHTINGS = {
    "softmax": row_logits(),
    "sigmoid": row_logits("sigmoid"),
    "softmax with floor": row_logits(floor=0.2),
    "product": product(rows=row_logits(), sources=row_logits("sigmoid")),
}
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "clipped adamw": optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(1e-2, weight_decay=0.1)),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "rmsprop": optax.rmsprop(1e-2, eps=1e-4),
}


@functools.cache
def setting(name, weighting="softmax", reduction="row"):
    """A warm start: moments that three steps have filled, outer variables away from uniform."""
    optimizer, weighting = OPTIMIZERS[name], WEIGHTINGS[weighting]
    params = network(jax.random.key(0), dtype=jnp.float64)
    outer, memory = weighting.init(jax.random.key(1), SIZES)
    leaves, structure = jax.tree.flatten(outer)
    outer = structure.unflatten(
        [0.3 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    )
    problem = RowProblem(row_losses, weighting, upper, reduction=reduction)
    lower_batch = rows(1, BATCH, POOL, dtype=np.float64)
    upper_batch = rows(2, 4, dtype=np.float64)
    general = problem.general(memory)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: general.lower(outer, p, lower_batch).value)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    return problem, params, state, outer, lower_batch, upper_batch


def loss_after_one_step(problem, optimizer, params, state, lower_batch, upper_batch):
    general = problem.general(problem.weighting.init(jax.random.key(1), SIZES)[1])

    def value(outer):
        gradient = jax.grad(lambda p: general.lower(outer, p, lower_batch).value)(params)
        updates, _ = optimizer.update(gradient, state, params)
        return general.upper(outer, optax.apply_updates(params, updates), upper_batch).value

    return value


def estimated(problem, optimizer, rule, params, state, outer, lower_batch, upper_batch, pieces=1, steps=1):
    """The outer gradient that a solver step descends, read off by an outer optimizer that applies it as it is."""
    solver = alternating(problem, optimizer, optax.sgd(1.0), implicit(rule), outer_start=outer)
    begun = solver.init(jax.random.key(2), params, SIZES)
    begun = begun.replace(
        inner=begun.inner._replace(optimizer=state), outer=begun.outer._replace(inner=outer)
    )
    lower = {name: np.stack([value] * steps) for name, value in in_micro_batches(lower_batch, pieces).items()}
    after, report = jax.jit(solver.step)(begun, lower, in_micro_batches(upper_batch, min(pieces, 2)))
    assert report.finite
    return optax.tree.sub(outer, after.outer.inner)


RULES = {"identity": identity(0.1), "optimizer_aware": optimizer_aware()}


@functools.cache
def estimate_of(name, rule, weighting="softmax", reduction="row", pieces=1):
    """Of one setting, for all that compare with it."""
    problem, *given = setting(name, weighting, reduction)
    return estimated(problem, OPTIMIZERS[name], RULES[rule], *given, pieces=pieces)


@functools.cache
def differences_of(name, weighting="softmax", reduction="row"):
    problem, params, state, outer, *batches = setting(name, weighting, reduction)
    return finite_difference(loss_after_one_step(problem, OPTIMIZERS[name], params, state, *batches), outer)


CASES = [
    *((name, "softmax", "row") for name in OPTIMIZERS),
    *(("clipped adamw", weighting, "row") for weighting in WEIGHTINGS if weighting != "softmax"),
    *(("clipped adamw", "softmax", reduction) for reduction in ("token", "sum")),
]


@pytest.mark.parametrize(("name", "weighting", "reduction"), CASES)
def test_optimizer_aware_is_the_derivative_through_the_optimizer_step(name, weighting, reduction):
    found = estimate_of(name, "optimizer_aware", weighting, reduction)
    assert relative_error(found, differences_of(name, weighting, reduction)) < 1e-6


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_identity_is_the_derivative_through_a_gradient_step(weighting):
    found = estimate_of("sgd", "identity", weighting)
    assert relative_error(found, differences_of("sgd", weighting)) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_row_scores_equal_the_general_cross_derivative(rule):
    problem, *given = setting("clipped adamw")
    by_functions = estimated(problem.general(()), OPTIMIZERS["clipped adamw"], RULES[rule], *given)
    assert relative_error(estimate_of("clipped adamw", rule), by_functions) < 1e-12


def test_direct_outer_dependence_of_the_upper_level_is_added():
    """An upper level that regularises the outer variables gets that gradient too."""
    optimizer = OPTIMIZERS["sgd"]
    problem, params, state, outer, *batches = setting("sgd")

    def regularised(outer, params, batch):
        mean = upper(outer, params, batch)
        return mean.replace(total=mean.total + 0.3 * mean.count * jnp.sum(outer**2))

    problem = problem._replace(upper=regularised)
    reference = finite_difference(loss_after_one_step(problem, optimizer, params, state, *batches), outer)
    for form in (problem, problem.general(())):
        found = estimated(form, optimizer, identity(0.1), params, state, outer, *batches)
        assert relative_error(found, reference) < 1e-6


def test_an_outer_penalty_adds_its_gradient():
    problem, *given = setting("sgd")
    _, _, outer, *batches = given
    penalised = problem._replace(outer_penalty=entropy_penalty(0.7, problem.weighting))
    found = estimated(penalised, OPTIMIZERS["sgd"], identity(0.1), *given)

    def term(outer):
        weights = problem.weighting.weights(outer, (), batches[0], None)
        return 0.7 * jnp.mean(weights * jnp.log(weights))

    assert relative_error(found - estimate_of("sgd", "identity"), finite_difference(term, outer)) < 1e-6


@pytest.mark.parametrize("reduction", ["row", "token", "sum"])
def test_accumulation_changes_nothing(reduction):
    case = ("clipped adamw", "optimizer_aware", "softmax", reduction)
    for pieces in (2, 3):
        assert relative_error(estimate_of(*case, pieces), estimate_of(*case)) < 1e-12


def test_dead_entries_under_clip_and_adam_equal_the_reduced_problem():
    """Fresh moments and parameters that the loss never touches: finite, and as if they were not there."""
    optimizer = OPTIMIZERS["clipped adamw"]
    problem, params, _, outer, *batches = setting("clipped adamw")
    found = estimated(problem, optimizer, optimizer_aware(), params, optimizer.init(params), outer, *batches)
    # Without the untouched entry: `unused[1]` is dropped, `unused[0]` is the bias.
    reduced = {**params, "unused": params["unused"][:1]}
    reference = estimated(
        problem, optimizer, optimizer_aware(), reduced, optimizer.init(reduced), outer, *batches
    )
    assert np.all(np.isfinite(found))
    assert relative_error(found, reference) < 1e-9


def quadratic(lower_matrix, upper_matrix) -> Problem:
    """lower = |inner - outer|^2_A / 2, upper = |inner - target|^2_B / 2 + sum(outer) / 10."""
    from bilevel.core import Mean

    def lower(outer, inner, batch):
        gap = inner - outer
        return Mean(0.5 * gap @ lower_matrix @ gap + 0.0 * batch["zero"][0], jnp.ones(()))

    def upper(outer, inner, batch):
        gap = inner - 1.0
        return Mean(0.5 * gap @ upper_matrix @ gap + jnp.sum(outer) / 10, jnp.ones(()))

    return Problem(lower, upper)


def test_penalty_gradient_is_that_of_its_value_function_and_tends_to_the_hypergradient():
    """At converged copies (Danskin): d/d outer of min over inner of share U + (1 - share)(L - value)."""
    rng = np.random.default_rng(0)
    lower_matrix = jnp.asarray(np.cov(rng.normal(size=(3, 9))) + np.eye(3))
    upper_matrix = jnp.asarray(np.cov(rng.normal(size=(3, 9))) + np.eye(3))
    problem, outer = quadratic(lower_matrix, upper_matrix), jnp.asarray(rng.normal(size=3))
    batch = {"zero": np.zeros((1, 1))}

    @jax.jit
    def descended(share):
        solver = penalty(problem, optax.sgd(0.2), optax.sgd(1.0), lambda step: share, outer_start=outer)
        state = solver.init(jax.random.key(0), jnp.zeros(3))
        lower_batches = {"zero": np.zeros((1, 1, 1))}

        def move(state, _):
            return solver.step(state, lower_batches, batch, updates=("inner",))[0], None

        state, _ = jax.lax.scan(move, state, None, length=2000)
        return outer - solver.step(state, lower_batches, batch)[0].outer.inner

    def penalised_optimum(share):
        def value(outer):
            inner = jnp.linalg.solve(
                share * upper_matrix + (1 - share) * lower_matrix,
                share * upper_matrix @ jnp.ones(3) + (1 - share) * lower_matrix @ outer,
            )
            return share * problem.upper(outer, inner, batch).value + (1 - share) * (
                0.5 * (inner - outer) @ lower_matrix @ (inner - outer)
            )

        return value

    for share in (0.5, 0.1):
        reference = finite_difference(penalised_optimum(share), outer)
        assert relative_error(descended(share), reference) < 1e-7

    # inner*(outer) = outer, so the true hypergradient is grad U at outer.
    exact = upper_matrix @ (outer - 1.0) + 0.1
    errors = [relative_error(descended(share) / share, exact) for share in (0.1, 0.01, 0.001)]
    assert errors[2] < 5e-3
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("copies", [1, 2])
def test_penalty_row_signal_is_the_partial_derivative_of_the_lower_losses(copies):
    optimizer = OPTIMIZERS["sgd"]
    problem, params, _, outer, lower_batch, upper_batch = setting("sgd")
    share = 0.25
    solver = penalty(problem, optimizer, optax.sgd(1.0), lambda step: share, copies=copies)
    state = solver.init(jax.random.key(0), params, SIZES)
    second = network(jax.random.key(9), dtype=jnp.float64)
    state = state.replace(outer=state.outer._replace(inner=outer))
    if copies == 2:
        state = state.replace(extra=state.extra._replace(inner=second))
    lower = {name: value[None, None] for name, value in lower_batch.items()}
    after, _ = jax.jit(solver.step)(state, lower, in_micro_batches(upper_batch, 1))
    general = problem.general(())

    def excess(outer):
        value = general.lower(outer, second, lower_batch).value if copies == 2 else 0.0
        return (1 - share) * (general.lower(outer, params, lower_batch).value - value)

    found = outer - after.outer.inner
    assert relative_error(found, finite_difference(excess, outer)) < 1e-7
