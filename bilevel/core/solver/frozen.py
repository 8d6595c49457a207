"""Training at frozen outer variables: the lower steps of every method, and the whole of a baseline."""

from __future__ import annotations

import optax

from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import take_lower_steps
from bilevel.core.problem import Problem, RowProblem
from bilevel.core.solver.shell import Advance, Scene, solver_of
from bilevel.core.solver.solver import Solver
from bilevel.core.tree import PyTree


def frozen(
    problem: Problem | RowProblem, optimizer: optax.GradientTransformation, outer_start: PyTree | None = None
) -> Solver:
    """Lower steps alone: the outer variables stay, whatever `updates` says of them, and the upper level is not asked.

    Args:
        problem: the bilevel problem.
        optimizer: of the inner variables.
        outer_start: the outer variables, for a general problem only.
    """
    level = lower_level(problem)

    def advance(scene: Scene) -> Advance:
        state = scene.state
        taken = take_lower_steps(
            level,
            optimizer,
            outer=scene.outer,
            memory=state.memory,
            start=state.inner,
            lower_batches=scene.lower_batches,
            step=state.step,
        )
        return Advance(taken.end, taken.memory, (), taken.passed, taken.weighed)

    return solver_of(
        advance, problem=problem, inner=optimizer, outer=optax.set_to_zero(), outer_start=outer_start
    )
