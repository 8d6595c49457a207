"""Alternating descent: K lower steps, then one outer step along a hypergradient."""

from __future__ import annotations

from collections.abc import Collection

import jax
import optax
from jaxtyping import Array

from bilevel.core.hypergradient import Hypergradient, Iterate, Levels, Point
from bilevel.core.lower_level import LowerPass, Weighed, lower_level
from bilevel.core.problem import Batch, Problem, RowProblem
from bilevel.core.solver.solver import (
    BOTH,
    Level,
    Solver,
    SolverState,
    StepReport,
    descend,
    finish_step,
    initial_state,
    lower_steps_in,
    visited_rows,
    weighting_of,
)
from bilevel.core.tree import PyTree, all_finite


def alternating(
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    hypergradient: Hypergradient,
    outer_start: PyTree | None = None,
) -> Solver:
    """A solver that alternates lower steps and hypergradient steps.

    One step takes K optimizer steps on the lower loss, one for each of its K lower batches, estimates the
    hypergradient around them, and moves the outer variables. `updates=("outer",)` makes the lower steps virtual:
    they are differentiated and put back. `updates=("inner",)` trains at frozen outer variables and pays for nothing
    else.

    Args:
        problem: the bilevel problem.
        inner: optimizer of the inner variables; rules such as `optimizer_aware` differentiate it.
        outer: optimizer of the outer variables; receives `visited=` (row ids of the last batch) if it asks.
        hypergradient: estimator, e.g. `implicit(identity(1.0))`.
        outer_start: initial outer variables, for a general problem only.
    """
    level = lower_level(problem)
    levels = Levels(level, problem.upper, inner)
    start_outer = weighting_of(problem, outer_start)

    def init(key: Array, params: PyTree) -> SolverState:
        outer_variables, memory = start_outer(jax.random.fold_in(key, 0))
        estimator = hypergradient.init(levels, params)
        return initial_state(
            jax.random.fold_in(key, 1), params, outer_variables, memory, estimator, inner, outer
        )

    def lower_step(
        state: SolverState, iterate: Iterate, memory: PyTree, batches: Batch
    ) -> tuple[Iterate, PyTree, LowerPass, Weighed]:
        weighed = level.weigh(state.outer.inner, memory, iterate.inner, batches)
        passed = level.gradient(state.outer.inner, weighed.weights, iterate.inner, batches)
        after = descend(inner, iterate, passed.gradient)
        return after, level.remember(memory, batches, passed.row_losses), passed, weighed

    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: Collection[Level] = BOTH
    ) -> tuple[SolverState, StepReport]:
        key, step_key = jax.random.split(state.key)

        def earlier_step(
            carry: tuple[Iterate, PyTree], batches: Batch
        ) -> tuple[tuple[Iterate, PyTree], None]:
            after, memory, _, _ = lower_step(state, *carry, batches)
            return (after, memory), None

        last_batches = jax.tree.map(lambda x: x[-1], lower_batches)
        carry = (state.inner, state.memory)
        if lower_steps_in(lower_batches) > 1:
            carry, _ = jax.lax.scan(earlier_step, carry, jax.tree.map(lambda x: x[:-1], lower_batches))
        last, memory = carry
        end, new_memory, passed, weighed = lower_step(state, last, memory, last_batches)

        finite = all_finite((passed.loss, end.inner))
        new = state.replace(inner=end, memory=new_memory, key=key)
        upper, diagnostics = None, None
        if "outer" in updates:
            point = Point(
                state.outer.inner, memory, state.inner, last, end, passed.gradient, weighed,
                lower_batches, upper_batches, step_key,
            )  # fmt: skip
            estimate = hypergradient.estimate(levels, point, state.extra)
            upper, diagnostics = estimate.upper, estimate.diagnostics
            moved = descend(outer, state.outer, estimate.gradient, **visited_rows(lower_batches))
            new = new.replace(outer=moved, extra=estimate.state)
            finite &= estimate.diagnostics.finite & all_finite(moved.inner)

        report = StepReport(
            lower=passed.loss,
            upper=upper,
            row_losses=passed.row_losses,
            row_weights=weighed.weights,
            row_id=last_batches.get("row_id"),
            finite=finite,
            diagnostics=diagnostics,
        )
        return finish_step(state, new, updates, finite), report

    return Solver(init, step)
