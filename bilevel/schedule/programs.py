"""The compiled programs of training: the step as it runs, and the loss on trusted rows that is watched."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bilevel.core.compiled import Compiled
from bilevel.core.problem import Batch, Problem, RowProblem
from bilevel.core.solver import Solver, SolverState, StepReport
from bilevel.core.tree import PyTree
from bilevel.layout import Layout
from bilevel.schedule.context import Context


def compiled_upper_loss(problem: Problem | RowProblem, context: Context) -> Compiled:
    """The upper loss of a batch: `(outer, inner, batch) -> scalar`."""
    return context.kept.get(
        ("upper", problem.upper),
        lambda: Compiled(lambda outer, inner, batch: problem.upper(outer, inner, batch).value),
    )


def compiled_step(solver: Solver, state: SolverState, context: Context) -> Compiled:
    """The step as it runs: the state is donated, and comes back to where it lay."""
    return context.kept.get(("step", solver), lambda: step_program(solver, state, context.layout))


def step_program(solver: Solver, state: PyTree, layout: Layout) -> Compiled:
    """The program of a solver's step, for arrays or their shapes.

    Args:
        solver: whose step.
        state: its state, or the shapes of it with their shardings.
        layout: where arrays lie of which nothing is said.
    """

    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: tuple[str, ...]
    ) -> tuple[SolverState, StepReport]:
        state, report = solver.step(state, lower_batches, upper_batches, updates)
        # A weak type is lost on disk: with one, a continued run would promote, and round, otherwise.
        return jax.tree.map(_strongly_typed, state), report

    return Compiled(step, donate_argnums=(0,), out_shardings=(layout.shardings(state), None))


def _strongly_typed(array: jax.Array) -> jax.Array:
    keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return array if keys else jax.lax.convert_element_type(array, array.dtype)
