"""Alternating descent: K lower steps, then one outer step along a hypergradient."""

from __future__ import annotations

from collections.abc import Collection

import jax
import optax
from jaxtyping import Array

from bilevel.core.hypergradient import Hypergradient, Levels, Point
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import descend, take_lower_steps
from bilevel.core.problem import Batch, Problem, RowProblem
from bilevel.core.solver.solver import (
    BOTH,
    Level,
    Solver,
    SolverState,
    StepReport,
    conclude,
    initial_state,
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
    # Estimators may differentiate what they take of the lower level, which first-order functions do not allow.
    differentiable = problem._replace(first_order=None) if isinstance(problem, RowProblem) else problem
    levels = Levels(lower_level(differentiable), problem.upper, inner)
    start_outer = weighting_of(problem, outer_start)

    def init(key: Array, params: PyTree) -> SolverState:
        outer_variables, memory = start_outer(jax.random.fold_in(key, 0))
        estimator = hypergradient.init(levels, params)
        return initial_state(
            jax.random.fold_in(key, 1), params, outer_variables, memory, estimator, inner, outer
        )

    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: Collection[Level] = BOTH
    ) -> tuple[SolverState, StepReport]:
        key, step_key = jax.random.split(state.key)
        estimates = "outer" in updates
        taken = take_lower_steps(
            level,
            inner,
            state.outer.inner,
            state.memory,
            state.inner,
            lower_batches,
            hypergradient.looks_back,
            keeps_steps=estimates and hypergradient.keeps_steps,
            keeps_pass=estimates and hypergradient.keeps_pass,
        )
        finite = all_finite((taken.passed.loss, taken.end.inner))
        new = state.replace(inner=taken.end, memory=taken.memory, key=key)
        upper, diagnostics = None, None
        if estimates:
            point = Point(
                outer=state.outer.inner,
                memory=taken.last_memory,
                start=state.inner,
                last=taken.last,
                end=taken.end,
                gradient=taken.passed.gradient,
                weighed=taken.weighed,
                lower_batches=lower_batches,
                upper_batches=upper_batches,
                key=step_key,
                look_back=taken.look_back,
                cross_signal=taken.cross_signal,
            )
            estimate = hypergradient.estimate(levels, point, state.extra)
            upper, diagnostics = estimate.upper, estimate.diagnostics
            moved = descend(outer, state.outer, estimate.gradient, **visited_rows(lower_batches))
            new = new.replace(outer=moved, extra=estimate.state)
            finite &= estimate.diagnostics.finite & all_finite(moved.inner)
        last_batches = jax.tree.map(lambda x: x[-1], lower_batches)
        return conclude(
            state, new, updates, finite, taken.passed, taken.weighed, last_batches, upper, diagnostics
        )

    return Solver(init, step)
