"""Populations: one member is the solver itself, several average their own outer steps, resets are staggered."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import alternating, implicit, optimizer_aware, population
from tests.core.test_solvers import POOL, SIZES, batches, compiled
from tests.zoo import network, row_problem


def base(outer=None):
    # Fresh moments make Adam's step a sign, whose derivative is rounding alone unless eps is of the gradients' size.
    inner = optax.adam(1e-2, eps=1e-2)
    return alternating(row_problem(POOL), inner, outer or optax.adam(0.05), implicit(optimizer_aware()))


def run(solver, steps: int, updates=("inner", "outer"), lower_steps: int = 1, state=None):
    step = compiled(solver)
    if state is None:
        state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    report = None
    for seed in range(steps):
        state, report = step(state, *batches(seed, lower_steps), updates=updates)
    return state, report


def member(state, place: int):
    return jax.tree.map(lambda x: x[place], state.extra.members)


def test_one_member_teaches_what_the_solver_itself_learns():
    alone, _ = run(base(), 3)
    taught, report = run(population(base(), 1), 3)
    chex.assert_trees_all_close(taught.outer.inner, alone.outer.inner, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(member(taught, 0).inner, alone.inner, rtol=1e-5, atol=1e-7)
    assert report.row_weights.shape == (1, 8)
    assert int(taught.step) == 3


@pytest.mark.parametrize("together", [False, True])
def test_members_move_the_outer_variables_by_the_mean_of_their_own_steps(together):
    solver = population(base(), 2, together=together)
    # A step before, with different rows, so that the members' moments differ.
    begun, _ = run(solver, 1, ("outer",), lower_steps=2)
    lower, upper_batch = batches(7, lower_steps=2)
    after, report = compiled(solver)(begun, lower, upper_batch, updates=("outer",))
    moves = []
    for place in (0, 1):
        own = member(begun, place)
        own = own.replace(outer=own.outer._replace(inner=begun.outer.inner))
        part = {name: value[place : place + 1] for name, value in lower.items()}
        moved, _ = compiled(base())(own, part, upper_batch)
        chex.assert_trees_all_close(member(after, place).inner, moved.inner, rtol=1e-5, atol=1e-6)
        moves.append(moved.outer.inner - begun.outer.inner)
    assert float(jnp.abs(moves[0] - moves[1]).max()) > 1e-3
    np.testing.assert_allclose(after.outer.inner - begun.outer.inner, sum(moves) / 2, rtol=1e-4, atol=1e-6)
    assert report.row_id.shape == (2, 8)
    chex.assert_trees_all_equal(after.inner, begun.inner)


def test_the_training_beside_the_population_is_the_solvers_own():
    solver = population(base(), 2)
    taught, _ = run(solver, 2, ("outer",), lower_steps=2)
    after, _ = compiled(solver)(taught, *batches(5), updates=("inner",))
    plain = base().init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    plain = plain.replace(outer=plain.outer._replace(inner=taught.outer.inner))
    expected, _ = compiled(base())(plain, *batches(5), updates=("inner",))
    chex.assert_trees_all_close(after.inner, expected.inner, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(after.outer, taught.outer)
    chex.assert_trees_all_equal(after.extra.members, taught.extra.members)


def test_resets_come_one_after_another_and_leave_moments_of_the_outer_optimizer():
    solver, start = population(base(), 2, reset_every=4), network(jax.random.key(1))
    state, ages = None, []
    for _ in range(9):
        state, _ = run(solver, 1, ("outer",), lower_steps=2, state=state)
        ages.append([int(member(state, place).step) for place in (0, 1)])
    assert ages == [[1, 1], [2, 2], [3, 1], [4, 2], [1, 3], [2, 4], [3, 1], [4, 2], [1, 3]]
    assert int(member(state, 0).outer.optimizer[0].count) == 9
    moved = optax.tree.sub(member(state, 0).inner.inner, start)
    # One step of Adam at 1e-2 from the start.
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(moved)) < 0.011


def test_members_may_begin_each_from_its_own_draw():
    solver = population(base(), 2, starts=network)
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    first, second = (member(state, place).inner.inner["second"]["kernel"] for place in (0, 1))
    assert not np.allclose(first, second)
    chex.assert_trees_all_equal(state.inner.inner, network(jax.random.key(1)))


def test_a_member_that_is_not_finite_is_left_out_and_counted():
    solver = population(base(), 2)
    state = solver.init(jax.random.key(0), network(jax.random.key(1)), SIZES)
    lower, upper_batch = batches(3, lower_steps=2)
    poisoned = {**lower, "y": lower["y"].copy()}
    poisoned["y"][1] = np.nan
    after, report = compiled(solver)(state, poisoned, upper_batch, updates=("outer",))
    assert not report.finite
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (1, 1)
    chex.assert_trees_all_equal(member(after, 1).inner, member(state, 1).inner)
    own = {name: value[:1] for name, value in lower.items()}
    alone, _ = compiled(base())(
        base().init(jax.random.key(0), network(jax.random.key(1)), SIZES), own, upper_batch
    )
    np.testing.assert_allclose(after.outer.inner, alone.outer.inner, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("members", "reset_every"), [(0, 0), (4, 3), (2, -1)])
def test_populations_that_cannot_be(members, reset_every):
    with pytest.raises(ValueError, match="population"):
        population(base(), members, reset_every)


def test_batches_that_cannot_be_dealt_out_are_refused():
    solver = population(base(), 2)
    with pytest.raises(ValueError, match="dealt out"):
        run(solver, 1, lower_steps=3)
