"""Several inner trainings that teach one set of outer variables: a solver made of another solver."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array

from bilevel.core.hypergradient import Iterate
from bilevel.core.losses import Mean
from bilevel.core.problem import NO_SIZES, Batch, CameFrom, Sizes
from bilevel.core.solver.solver import BOTH, Level, Solver, SolverState, StepReport
from bilevel.core.tree import PyTree


class Population(struct.PyTreeNode):
    """What a population adds to the state of the solver that it is made of.

    Attributes:
        extra: that solver's own, of the training that the population is for.
        members: one solver state a member, stacked; its outer variables are left out, since all share one.
        fresh: what a member becomes when it is reset; its leading axis is the members', or one where all begin alike.
    """

    extra: Any
    members: Any
    fresh: Any


def population(
    solver: Solver,
    members: int,
    reset_every: int = 0,
    starts: Callable[[Array], PyTree] | None = None,
    together: bool = False,
) -> Solver:
    """Lets several inner trainings of different ages move the outer variables of one.

    Each member m takes the solver's own step (both levels) on its part of the lower batches, with its own inner
    variables and its own state of the outer optimizer. The outer variables move by the mean of what the members would
    have moved them by:

        outer <- outer + 1/M sum_m step_m(outer),    step_m by the outer optimizer of member m

    So each meta-gradient is normalised (by Adam, say) against its own history before it is averaged: members early in
    training, whose gradients are large, do not drown the others. Members return to their beginning every `reset_every`
    steps, one after another, so that their ages are spread evenly and the outer variables serve every stage of
    training. The state's own inner variables are a training beside the population: `updates=("outer",)` leaves them
    alone, `updates=("inner",)` trains them at frozen outer variables by the solver's own step.

    A member whose step is not finite is left out of the mean and marks the step as skipped. The lower steps of a batch
    are dealt out: K = M k lower batches give each member k. The upper batch is the same for all.

    Args:
        solver: any solver.
        members: M.
        reset_every: outer steps of a member's life; 0 for no reset.
        starts: `(key) -> inner variables` that a member begins from, and returns to; by default those of the state.
            With it memory holds each member twice.
        together: whether to run the members as one vectorised program, which an accelerator may like; otherwise
            one after another, with the memory for one step.

    Raises:
        ValueError: for no members, a reset that gives them no time, or, at a step, lower batches that cannot be dealt
            out evenly.

    References:
        Calian et al., DataRater: Meta-Learned Dataset Curation, arXiv 2505.17895.
    """
    if members < 1:
        raise ValueError(f"population: needs at least one member, not {members}")
    if reset_every < 0 or 0 < reset_every < members:
        raise ValueError(
            f"population: reset_every {reset_every} must be 0, or at least the number of members ({members})"
        )

    def init(key: Array, params: PyTree, sizes: Sizes = NO_SIZES) -> SolverState:
        state = solver.init(jax.random.fold_in(key, 0), params, sizes)
        keys = jax.random.split(jax.random.fold_in(key, 1), members)
        if starts is None:
            fresh = [_alone(state)]
        else:
            begun = (solver.init(each, starts(jax.random.fold_in(each, 0)), sizes) for each in keys)
            fresh = [_alone(other.replace(outer=state.outer)) for other in begun]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *fresh)
        each = jax.tree.map(lambda x: jnp.broadcast_to(x, (members, *x.shape[1:])), stacked)
        return state.replace(extra=Population(state.extra, each.replace(key=keys), stacked))

    def advance(
        state: SolverState,
        arguments: tuple[SolverState, SolverState, Array, Batch],
        upper: Batch,
        updates: Collection[Level],
    ) -> tuple[SolverState, PyTree, StepReport]:
        member, fresh, due, lower = arguments
        fresh = fresh.replace(outer=member.outer, key=None)
        begun = optax.tree.where(due, fresh, member.replace(key=None)).replace(key=member.key)
        shared = begun.outer._replace(inner=state.outer.inner)
        after, report = solver.step(begun.replace(outer=shared), lower, upper, updates)
        return _alone(after), optax.tree.sub(after.outer.inner, state.outer.inner), report

    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: Collection[Level] = BOTH
    ) -> tuple[SolverState, StepReport]:
        kept: Population = state.extra
        own, own_report = state, None
        taught = tuple(level for level in updates if level != "inner")
        if "inner" in updates:
            own, own_report = solver.step(
                state.replace(extra=kept.extra), lower_batches, upper_batches, ("inner",)
            )
        if not taught:
            assert own_report is not None  # some level moves
            return own.replace(extra=kept.replace(extra=own.extra)), own_report

        places = jnp.arange(members)
        due = jnp.zeros(members, bool)
        if reset_every:
            due = (state.step > 0) & ((state.step + places * reset_every // members) % reset_every == 0)
        dealt = {name: _deal(value, members) for name, value in lower_batches.items()}
        fresh = jax.tree.map(lambda x: jnp.broadcast_to(x, (members, *x.shape[1:])), kept.fresh)

        def one(
            arguments: tuple[SolverState, SolverState, Array, Batch],
        ) -> tuple[SolverState, PyTree, StepReport]:
            return advance(state, arguments, upper_batches, ("inner", *taught))

        run = jax.vmap(one) if together else lambda arguments: jax.lax.map(one, arguments)
        after, moves, reports = run((kept.members, fresh, due, dealt))

        applied = jnp.maximum(jnp.sum(reports.finite), 1)
        move = jax.tree.map(lambda x: (jnp.sum(x, axis=0) / applied).astype(x.dtype), moves)
        failed = jnp.where(jnp.all(reports.finite), 0, 1)
        new = own.replace(
            outer=Iterate(optax.tree.add(state.outer.inner, move), state.outer.optimizer),
            extra=kept.replace(extra=own.extra if own_report is not None else kept.extra, members=after),
            key=jax.random.split(state.key)[0],
            step=state.step + 1,
            skipped=state.skipped + failed,
            skipped_in_a_row=jnp.where(failed == 0, 0, state.skipped_in_a_row + 1),
        )
        return new, _joined(reports)

    def carry(state: SolverState, sizes: Sizes, came_from: CameFrom) -> SolverState:
        kept: Population = state.extra
        own = solver.carry(state.replace(extra=kept.extra), sizes, came_from)

        def each(stacked: PyTree) -> PyTree:
            def one(place: int) -> SolverState:
                alone = jax.tree.map(lambda x: x[place], stacked)
                whole = alone.replace(outer=alone.outer._replace(inner=state.outer.inner))
                return _alone(solver.carry(whole, sizes, came_from))

            followed = [one(place) for place in range(stacked.step.shape[0])]
            return jax.tree.map(lambda *x: jnp.stack(x), *followed)

        return own.replace(extra=Population(own.extra, each(kept.members), each(kept.fresh)))

    return Solver(init, step, carry)


def _alone(state: SolverState) -> SolverState:
    """A member's state: without the outer variables, which the population holds."""
    return state.replace(outer=state.outer._replace(inner=()))


def _deal(batches: Array, members: int) -> Array:
    steps = batches.shape[0]
    if steps % members:
        raise ValueError(
            f"{steps} lower batches cannot be dealt out to {members} members: give a multiple of {members}"
        )
    return jnp.reshape(batches, (members, steps // members, *batches.shape[1:]))


def _joined(reports: StepReport) -> StepReport:
    """One report of all members: their losses as sums, their rows side by side, the mean of what they saw."""

    def total(mean: Mean) -> Mean:
        return Mean(jnp.sum(mean.total), jnp.sum(jnp.asarray(mean.count)))

    def side_by_side(rows: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    finite = jnp.all(reports.finite)
    diagnostics = reports.diagnostics
    if diagnostics is not None:
        diagnostics = jax.tree.map(lambda x: jnp.mean(x, axis=0), diagnostics.replace(finite=None))
        diagnostics = diagnostics.replace(finite=finite)
    return StepReport(
        lower=total(reports.lower),
        upper=None if reports.upper is None else total(reports.upper),
        row_losses=side_by_side(reports.row_losses),
        row_weights=side_by_side(reports.row_weights),
        row_id=side_by_side(reports.row_id),
        factors=side_by_side(reports.factors),
        finite=finite,
        diagnostics=diagnostics,
    )
