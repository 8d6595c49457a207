"""Alternating descent: K lower steps, then one outer step along a hypergradient."""

from __future__ import annotations

import optax

from bilevel.core.hypergradient import Hypergradient, Levels, Point
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import take_lower_steps
from bilevel.core.problem import Problem, RowProblem
from bilevel.core.solver.shell import Advance, Scene, solver_of
from bilevel.core.solver.solver import Solver
from bilevel.core.tree import PyTree


def alternating(
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    hypergradient: Hypergradient,
    *,
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
        outer: optimizer of the outer variables; receives `batch=` (the last lower batch) if it asks.
        hypergradient: estimator, e.g. `implicit(identity(1.0))`.
        outer_start: initial outer variables, for a general problem only.
    """
    level = lower_level(problem)
    # Estimators may differentiate what they take of the lower level, which first-order functions do not allow.
    differentiable = problem._replace(first_order=None) if isinstance(problem, RowProblem) else problem
    levels = Levels(lower_level(differentiable), problem.upper, inner)

    def advance(scene: Scene) -> Advance:
        state, estimates = scene.state, scene.moves_outer
        taken = take_lower_steps(
            level,
            inner,
            outer=scene.outer,
            memory=state.memory,
            start=state.inner,
            lower_batches=scene.lower_batches,
            step=state.step,
            looks_back=hypergradient.looks_back,
            keeps_steps=estimates and hypergradient.keeps_steps,
            keeps_pass=estimates and hypergradient.keeps_pass,
        )
        trained = Advance(taken.end, taken.memory, state.extra, taken.passed, taken.weighed)
        if not estimates:
            return trained
        point = Point(
            outer=scene.outer,
            memory=taken.last_memory,
            start=state.inner,
            last=taken.last,
            end=taken.end,
            gradient=taken.passed.gradient,
            weighed=taken.weighed,
            lower_batches=scene.lower_batches,
            upper_batches=scene.upper_batches,
            key=scene.key,
            step=state.step,
            look_back=taken.look_back,
            cross_signal=taken.cross_signal,
        )
        estimate = hypergradient.estimate(levels, point, state.extra)
        return trained._replace(
            extra=estimate.state,
            upper=estimate.upper,
            gradient=estimate.gradient,
            diagnostics=estimate.diagnostics,
        )

    return solver_of(
        advance,
        problem=problem,
        inner=inner,
        outer=outer,
        outer_start=outer_start,
        begin=lambda params: hypergradient.init(levels, params),
    )
