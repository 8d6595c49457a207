"""Solvers in float32: what they freeze, skip, count, shard and refuse."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import alternating, identity, implicit, optimizer_aware, penalty, soba, unroll
from bilevel.core.problem import Problem
from bilevel.layout import data_layout
from bilevel.weighting import exponentiated_gradient, loss_scorer, row_logits
from bilevel.weighting import network as network_weighting
from models.attention.reverse_only import reverse_only
from models.errors import ModelError
from tests.zoo import in_micro_batches, network, row_losses, row_problem, rows, upper

POOL = 16
SIZES = {"row_id": POOL}


def solvers(problem=None):
    problem = problem or row_problem(POOL)
    inner, outer = optax.adam(1e-2), exponentiated_gradient(0.1)
    return {
        "identity": alternating(problem, inner, outer, implicit(identity(0.1))),
        "optimizer_aware": alternating(problem, inner, outer, implicit(optimizer_aware())),
        "unroll": alternating(problem, inner, outer, unroll()),
        "soba": soba(problem, inner, outer),
        "penalty": penalty(problem, inner, outer, lambda step: 0.25),
        "penalty, one copy": penalty(problem, inner, outer, lambda step: 0.25, copies=1),
    }


# Those that share every line with another of the table are left to the slow tests.
EACH_SOLVER = [
    pytest.param(name, marks=pytest.mark.slow if name in ("identity", "penalty, one copy") else ())
    for name in solvers()
]


def batches(seed=0, lower_steps=1, pieces=1, size=8):
    lower = [in_micro_batches(rows(seed + k, size, POOL), pieces) for k in range(lower_steps)]
    stacked = {name: np.stack([b[name] for b in lower]) for name in lower[0]}
    return stacked, in_micro_batches(rows(seed + 50, size), pieces)


def compiled(solver):
    return jax.jit(solver.step, static_argnames="updates")


@pytest.fixture(scope="module", params=EACH_SOLVER)
def solver(request):
    return solvers()[request.param]


def begun(solver):
    """A state one inner step in, where the penalty's copies have parted."""
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    return compiled(solver)(state, *batches(seed=9), updates=("inner",))[0]


def test_a_step_moves_both_levels_and_only_visited_rows(solver):
    state = begun(solver)
    lower, upper_batch = batches()
    after, report = compiled(solver)(state, lower, upper_batch)
    moved = np.flatnonzero(np.asarray(after.outer.inner))
    assert set(moved) <= set(lower["row_id"].ravel())
    assert len(moved) > 1
    assert report.finite
    assert (int(after.step), int(after.skipped)) == (2, 0)
    assert not np.allclose(after.inner.inner["second"]["kernel"], state.inner.inner["second"]["kernel"])


@pytest.mark.parametrize("level", ["inner", "outer"])
def test_a_frozen_level_keeps_its_variables_bit_for_bit(solver, level):
    state = begun(solver)
    after, _ = compiled(solver)(state, *batches(), updates=(level,))
    frozen = "outer" if level == "inner" else "inner"
    chex.assert_trees_all_equal(getattr(after, frozen), getattr(state, frozen))
    moved = optax.tree.sub(getattr(after, level).inner, getattr(state, level).inner)
    assert float(optax.tree.norm(moved)) > 0


def forward_passes(hypergradient, weighting=None, pieces=1, updates=("inner", "outer")):
    """How often a step runs the lower rows forward: calls of the row losses while it is traced."""
    calls = []

    def counted(params, batch):
        calls.append(batch)
        return row_losses(params, batch)

    problem = row_problem(POOL, weighting=weighting)._replace(row_losses=counted)
    solver = alternating(problem, optax.adam(1e-2), optax.sgd(0.1), hypergradient)
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    jax.eval_shape(partial(solver.step, updates=updates), state, *batches(pieces=pieces))
    return len(calls)


@pytest.mark.parametrize("rule", [identity(0.1), optimizer_aware()], ids=["identity", "optimizer_aware"])
def test_a_cross_derivative_at_the_last_step_shares_its_forward_pass(rule):
    assert forward_passes(implicit(rule)) == 1
    assert forward_passes(implicit(rule, reuse=False)) == 2
    # A loop over micro-batches is traced twice, for its shapes and for itself, and holds nothing of any of them.
    assert forward_passes(implicit(rule), pieces=2) == 4


def test_a_weighting_that_reads_losses_shares_the_gradients_forward_pass():
    reading = network_weighting(loss_scorer("relative"))
    assert reading.needs_losses
    assert forward_passes(implicit(identity(0.1)), reading, updates=("inner",)) == 1
    assert forward_passes(implicit(identity(0.1)), reading) == 1


def test_inner_steps_at_frozen_outer_variables_are_plain_training():
    solver = solvers()["identity"]
    params = network(jax.random.key(1))
    state, step = solver.init(jax.random.key(0), params, SIZES), compiled(solver)
    optimizer = optax.adam(1e-2)
    moments = optimizer.init(params)
    for seed in range(3):
        lower, upper_batch = batches(seed)
        state, _ = step(state, lower, upper_batch, updates=("inner",))
        batch = {name: value[0, 0] for name, value in lower.items()}
        gradient = jax.grad(lambda p, b=batch: row_losses(p, b).weighted().value)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(state.inner.inner, params, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_finite_is_skipped_and_counted(solver):
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    step = compiled(solver)
    lower, upper_batch = batches()
    poisoned = {**lower, "y": lower["y"].copy()}
    poisoned["y"][0, 0, 3] = np.nan
    skipped, report = step(state, poisoned, upper_batch)
    assert not report.finite
    for part in ("inner", "outer", "extra", "memory"):
        chex.assert_trees_all_equal(getattr(skipped, part), getattr(state, part))
    assert (int(skipped.step), int(skipped.skipped), int(skipped.skipped_in_a_row)) == (1, 1, 1)
    assert np.flatnonzero(~np.isfinite(report.row_losses.total.ravel())).tolist() == [3]
    applied, _ = step(skipped, lower, upper_batch)
    assert (int(applied.step), int(applied.skipped), int(applied.skipped_in_a_row)) == (2, 1, 0)


def test_several_lower_steps_and_micro_batches_agree_with_one_batch_after_another(solver):
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    lower, upper_batch = batches(lower_steps=3)
    together, _ = compiled(solver)(state, lower, upper_batch, updates=("inner",))
    apart = state
    for k in range(3):
        apart, _ = compiled(solver)(
            apart, {n: v[k : k + 1] for n, v in lower.items()}, upper_batch, updates=("inner",)
        )
    chex.assert_trees_all_close(together.inner.inner, apart.inner.inner, rtol=1e-5, atol=1e-6)
    cut = {n: v.reshape(3, 4, 2, *v.shape[3:]) for n, v in lower.items()}
    accumulated, _ = compiled(solver)(state, cut, upper_batch)
    whole, _ = compiled(solver)(state, lower, upper_batch)
    # Adam divides gradients by their size: what differs in the last bits of a tiny gradient may differ visibly.
    chex.assert_trees_all_close(accumulated.inner.inner, whole.inner.inner, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(accumulated.outer.inner, whole.outer.inner, rtol=1e-4, atol=1e-5)


def test_eight_devices_give_the_numbers_of_one(solver):
    lower, upper_batch = batches()
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        layout = data_layout(devices)
        state = layout.replicate(solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES))
        step = compiled(solver)
        for _ in range(3):
            state, _ = step(state, layout.split(lower, axis=2), layout.split(upper_batch, axis=1))
        results.append(jax.device_get((state.inner.inner, state.outer.inner)))
    assert len(jax.devices()) == 8
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


def test_a_second_step_compiles_nothing(solver):
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(solver.step, n=1))
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    for seed in range(3):
        state, _ = step(state, *batches(seed))


def test_padding_a_batch_with_filler_rows_changes_nothing(solver):
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    lower, upper_batch = batches()
    padded = {n: np.concatenate([v, np.zeros_like(v[:, :, :4])], axis=2) for n, v in lower.items()}
    padded["row_id"][:, :, 8:] = -1
    plain, _ = compiled(solver)(state, lower, upper_batch)
    filled, _ = compiled(solver)(state, padded, upper_batch)
    chex.assert_trees_all_close(filled.inner.inner, plain.inner.inner, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(filled.outer.inner, plain.outer.inner, rtol=1e-5, atol=1e-6)


def test_two_penalty_copies_start_equal_and_part():
    solver = solvers()["penalty"]
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    chex.assert_trees_all_equal(state.inner, state.extra)
    after, _ = compiled(solver)(state, *batches())
    # Pre-update losses of equal copies are equal: the first step has no excess loss to move weights by.
    assert float(jnp.abs(after.outer.inner).max()) == 0.0
    assert float(optax.tree.norm(optax.tree.sub(after.inner.inner, after.extra.inner))) > 0


@pytest.mark.parametrize("name", ["lion", "sign_sgd"])
def test_optimizers_without_a_derivative_are_refused(name):
    solver = alternating(
        row_problem(POOL), getattr(optax, name)(1e-3), optax.identity(), implicit(optimizer_aware())
    )
    with pytest.raises(ValueError, match="does not depend smoothly"):
        solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)


def test_optimizers_with_a_warm_up_from_zero_are_not_refused():
    warm = optax.adam(optax.linear_schedule(0.0, 1e-2, 10))
    solver = alternating(row_problem(POOL), warm, optax.identity(), implicit(optimizer_aware()))
    solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)


def test_a_general_problem_needs_outer_variables_to_begin_with():
    problem = Problem(upper, upper)
    with pytest.raises(ValueError, match="outer_start"):
        alternating(problem, optax.sgd(0.1), optax.sgd(0.1), implicit(identity(0.1)))


def test_an_outer_penalty_has_no_general_form():
    problem = row_problem(POOL, outer_penalty=lambda outer, memory, batch, losses: jnp.sum(outer))
    with pytest.raises(ValueError, match="no general form"):
        problem.general()


@pytest.mark.parametrize(
    "bad", [{"floor": 1.0}, {"floor": -0.1}, {"keep_share": 0.0}, {"keep_share": 1.1}], ids=str
)
def test_row_logits_refuse_options_outside_their_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        row_logits(**bad)


def gradients_alone(params, batch):
    """The same losses with no forward-mode derivative, like those of a fused kernel."""
    return row_losses(jax.tree.map(reverse_only, params), batch)


@pytest.mark.parametrize("name", EACH_SOLVER)
def test_first_order_passes_take_the_function_that_serves_them_alone(name):
    def after(problem):
        solver = solvers(problem)[name]
        return compiled(solver)(begun(solver), *batches())[0]

    plain, fast = (after(row_problem(POOL, first_order=losses)) for losses in (None, gradients_alone))
    chex.assert_trees_all_close(fast.outer.inner, plain.outer.inner, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(fast.inner.inner, plain.inner.inner, rtol=1e-5, atol=1e-7)
    if not name.startswith("penalty"):
        with pytest.raises(ModelError, match="no forward-mode derivative"):
            after(row_problem(POOL)._replace(row_losses=gradients_alone))
