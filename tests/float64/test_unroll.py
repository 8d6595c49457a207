"""Unrolled hypergradients against central differences of the loss after K optimizer steps, in float64."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import (
    Mean,
    Problem,
    RowProblem,
    Seen,
    Weighting,
    alternating,
    implicit,
    optimizer_aware,
    unroll,
)
from bilevel.weighting import entropy_penalty, row_logits
from tests.zoo import finite_difference, in_micro_batches, network, relative_error, row_losses, rows, upper

POOL, BATCH, STEPS = 10, 6, 3
SIZES = {"row_id": POOL}

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "clipped adamw": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(5e-2, weight_decay=0.1)),
    "momentum with a schedule": optax.sgd(optax.linear_schedule(0.1, 0.05, 3), momentum=0.9),
    "rmsprop": optax.rmsprop(1e-2, eps=1e-4),
}
MODES = {
    "mixed": unroll(),
    "reverse": unroll("reverse"),
    "checkpointed": unroll("reverse", checkpoint=True),
    "forward": unroll("forward"),
}
# Checkpoints compute again what reverse mode kept; one test of all modes is enough to see that they agree.
EACH_MODE = [pytest.param(mode, marks=pytest.mark.slow if mode == "checkpointed" else ()) for mode in MODES]


def remembering() -> Weighting:
    """Weights that read the batch's row losses and a memory of earlier ones, both as data."""

    def weights(logits, memory, batch, losses):
        seen = memory[batch["row_id"]]
        return jax.nn.sigmoid(logits[batch["row_id"]] * (1 + losses.means) + 0.3 * seen)

    def update(memory, seen):
        ids = seen.batch["row_id"]
        return memory.at[ids].set(0.5 * memory[ids] + seen.losses.means)

    def init(key, sizes):
        return jnp.zeros(POOL), jnp.zeros(POOL)

    return Weighting(init, weights, update, needs_losses=True)


@functools.cache
def setting(name, steps=STEPS, warm=True):
    optimizer = OPTIMIZERS[name]
    params = network(jax.random.key(0), dtype=jnp.float64)
    outer = 0.3 * jax.random.normal(jax.random.key(1), (POOL,))
    lower = [rows(10 + k, BATCH, POOL, dtype=np.float64) for k in range(steps)]
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(lambda p: row_losses(p, batch).weighted().value)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for batch in [rows(k, BATCH, POOL, dtype=np.float64) for k in range(3)] if warm else ():
        params, state = step(params, state, batch)
    return params, state, outer, lower, rows(50, 4, dtype=np.float64)


def loss_after_training(problem, optimizer, params, state, outer, lower, upper_batch, fixed_steps=0):
    """The upper loss as a function of the outer variables, what weights read of losses kept as it was at `outer`."""
    weighting = problem.weighting

    def train(moved, read=None):
        inner, moments, memory, seen = params, state, weighting.init(jax.random.key(0), SIZES)[1], []
        for k, batch in enumerate(lower):
            # Differences leave the truncated steps alone, as truncated unrolling does.
            at = outer if k < fixed_steps else moved
            losses, memory = (row_losses(inner, batch), memory) if read is None else read[k]
            seen.append((losses, memory))
            weights = weighting.weights(at, memory, batch, losses)
            gradient = jax.grad(lambda p, w=weights, b=batch: row_losses(p, b).weighted(w).value)(inner)
            updates, moments = optimizer.update(gradient, moments, inner)
            inner, memory = (
                optax.apply_updates(inner, updates),
                weighting.update(memory, Seen(batch, losses, None, 0)),
            )
        return inner, seen

    read = train(outer)[1] if weighting.needs_losses else None
    return lambda moved: problem.upper(moved, train(moved, read)[0], upper_batch).value


def estimated(problem, optimizer, estimator, params, state, outer, lower, upper_batch, pieces=1):
    solver = alternating(problem, optimizer, optax.sgd(1.0), estimator, outer_start=outer)
    begun = solver.init(jax.random.key(2), params, SIZES)
    begun = begun.replace(
        inner=begun.inner._replace(optimizer=state), outer=begun.outer._replace(inner=outer)
    )
    cut = [in_micro_batches(batch, pieces) for batch in lower]
    stacked = {name: np.stack([batch[name] for batch in cut]) for name in cut[0]}
    after, report = jax.jit(solver.step, static_argnames="updates")(
        begun, stacked, in_micro_batches(upper_batch, min(pieces, 2)), updates=("outer",)
    )
    assert report.finite
    return optax.tree.sub(outer, after.outer.inner)


def row_problem(weighting=None, **options):
    return RowProblem(row_losses, weighting or row_logits("sigmoid"), upper, **options)


PLAIN, READING = row_problem(), row_problem(remembering())


@functools.cache
def by_differences(name, reads_losses=False, fixed_steps=0):
    """Central differences, shared by the modes."""
    given, problem = setting(name), READING if reads_losses else PLAIN
    value = loss_after_training(problem, OPTIMIZERS[name], *given, fixed_steps=fixed_steps)
    return finite_difference(value, given[2])


@functools.cache
def by_mode(name, mode):
    """The estimate of a plain problem, shared by what is compared with it."""
    return estimated(PLAIN, OPTIMIZERS[name], MODES[mode], *setting(name))


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, "mixed") for name in OPTIMIZERS if name != "clipped adamw"),
        *(("clipped adamw", mode) for mode in MODES),
    ],
)
def test_every_mode_is_the_derivative_through_the_steps(name, mode):
    assert relative_error(by_mode(name, mode), by_differences(name)) < 1e-7


@pytest.mark.parametrize("mode", EACH_MODE)
def test_what_weights_read_of_losses_and_memory_is_data(mode):
    name = "clipped adamw"
    found = estimated(READING, OPTIMIZERS[name], MODES[mode], *setting(name))
    assert relative_error(found, by_differences(name, reads_losses=True)) < 1e-7


@pytest.mark.parametrize(("mode", "steps"), [("mixed", 1), ("mixed", 2), ("reverse", 2), ("forward", 2)])
def test_truncation_takes_the_earlier_iterate_as_a_constant(mode, steps):
    name = "clipped adamw"
    found = estimated(READING, OPTIMIZERS[name], unroll(mode, last_steps=steps), *setting(name))
    reference = by_differences(name, reads_losses=True, fixed_steps=STEPS - steps)
    assert relative_error(found, reference) < 1e-7


def test_one_step_equals_the_optimizer_aware_rule():
    problem, optimizer = PLAIN, OPTIMIZERS["clipped adamw"]
    given = setting("clipped adamw", steps=1)
    reference = estimated(problem, optimizer, implicit(optimizer_aware()), *given)
    for mode in MODES.values():
        assert relative_error(estimated(problem, optimizer, mode, *given), reference) < 1e-12


@pytest.mark.slow
def test_general_problems_micro_batches_and_reductions_give_the_same_numbers():
    optimizer = OPTIMIZERS["clipped adamw"]
    given = setting("clipped adamw")
    for reduction in ("row", "token"):
        problem = row_problem(reduction=reduction)
        whole = estimated(problem, optimizer, unroll(), *given)
        assert relative_error(estimated(problem, optimizer, unroll(), *given, pieces=2), whole) < 1e-12
        general = problem.general(())
        for mode in MODES.values():
            assert relative_error(estimated(general, optimizer, mode, *given), whole) < 1e-12


def test_direct_dependence_and_the_outer_penalty_are_added_once():
    given = setting("clipped adamw")

    def regularised(outer, params, batch):
        mean = upper(outer, params, batch)
        return mean.replace(total=mean.total + 0.3 * mean.count * jnp.sum(outer**2))

    penalise = entropy_penalty(0.7, PLAIN.weighting)
    problem = PLAIN._replace(upper=regularised, outer_penalty=penalise)
    added = jax.grad(lambda outer: penalise(outer, (), given[3][-1], None) + 0.3 * jnp.sum(outer**2))(
        given[2]
    )
    for name, mode in MODES.items():
        found = estimated(problem, OPTIMIZERS["clipped adamw"], mode, *given)
        assert relative_error(found - by_mode("clipped adamw", name), added) < 1e-9


@pytest.mark.parametrize("mode", EACH_MODE)
def test_dead_entries_under_clip_and_adam_equal_the_reduced_problem(mode):
    """Fresh moments and parameters that the loss never touches: finite, and as if they were not there."""
    problem, optimizer = PLAIN, OPTIMIZERS["clipped adamw"]
    params, state, outer, *batches = setting("clipped adamw", warm=False)
    found = estimated(problem, optimizer, MODES[mode], params, state, outer, *batches)
    reduced = {**params, "unused": params["unused"][:1]}
    reference = estimated(problem, optimizer, MODES[mode], reduced, optimizer.init(reduced), outer, *batches)
    assert np.all(np.isfinite(found))
    assert relative_error(found, reference) < 1e-12


@pytest.mark.parametrize("mode", EACH_MODE)
def test_gradients_of_exactly_zero_have_derivatives_where_the_optimizer_has(mode):
    """inner' = inner - rate (inner - outer) from inner = outer: d inner / d outer = 1 - (1 - rate)^steps."""

    def lower(outer, inner, batch):
        return Mean(0.5 * jnp.sum((inner - outer) ** 2) + 0.0 * batch["zero"][0, 0], jnp.ones(()))

    def upper(outer, inner, batch):
        return Mean(jnp.sum(inner), jnp.ones(()))

    at, batches = jnp.asarray([1.0, 2.0]), [{"zero": np.zeros((1, 1))}] * STEPS
    optimizer = optax.sgd(0.25)
    found = estimated(
        Problem(lower, upper), optimizer, MODES[mode], at, optimizer.init(at), at, batches, batches[0]
    )
    assert found == pytest.approx(1 - 0.75**STEPS, rel=1e-12)


@functools.cache
def coming_and_going():
    """One-hot features, a few of them in each batch: entries live at one step and without a gradient at another."""
    optimizer = OPTIMIZERS["clipped adamw"]
    present = np.array([[0, 1, 0, 1, 0, 1], [1, 2, 1, 2, 1, 2], [0, 3, 3, 0, 3, 0]])
    lower = [rows(k, BATCH, POOL, features=6, dtype=np.float64) for k in range(STEPS)]
    lower = [{**batch, "x": np.eye(6)[present[k]]} for k, batch in enumerate(lower)]
    upper_batch = {**rows(50, 6, dtype=np.float64), "x": np.eye(6)}
    params = network(jax.random.key(0), features=6, dtype=jnp.float64)
    outer = 0.3 * jax.random.normal(jax.random.key(1), (POOL,))
    given = (params, optimizer.init(params), outer, lower, upper_batch)
    return given, finite_difference(loss_after_training(PLAIN, optimizer, *given), outer)


@pytest.mark.parametrize("mode", EACH_MODE)
def test_entries_that_come_and_go_are_differentiated(mode):
    given, reference = coming_and_going()
    found = estimated(PLAIN, OPTIMIZERS["clipped adamw"], MODES[mode], *given)
    assert relative_error(found, reference) < 1e-7
