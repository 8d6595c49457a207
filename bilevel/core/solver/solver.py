"""What every solver is: two pure functions over one state, as in optax."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array

from bilevel.core.hypergradient import Diagnostics
from bilevel.core.losses import Mean, RowLosses
from bilevel.core.lower_level import LowerPass, Weighed
from bilevel.core.lower_steps import Iterate
from bilevel.core.problem import Batch, Problem, RowProblem
from bilevel.core.tree import PyTree

Level = Literal["inner", "outer"]
BOTH: tuple[Level, ...] = ("inner", "outer")


class SolverState(struct.PyTreeNode):
    """Everything that a solver remembers, as one pytree.

    Attributes:
        inner: inner variables (model parameters, adapters) with their optimizer's state.
        outer: outer variables with their optimizer's state.
        memory: the weighting's own state, not differentiated.
        extra: what one solver alone needs: an estimator's state, the penalty's second copy.
        key: split once a step.
        step: steps tried, skipped ones included.
        skipped: steps that were not applied because something was not finite.
        skipped_in_a_row: the same since the last step that was applied.
    """

    inner: Iterate
    outer: Iterate
    memory: Any
    extra: Any
    key: Any
    step: Any
    skipped: Any
    skipped_in_a_row: Any


class StepReport(struct.PyTreeNode):
    """What one step saw. Row quantities are those of the last lower batch, None for a general problem.

    Attributes:
        lower: the weighted lower loss before the update.
        upper: the upper loss; None where the step did not need it.
        row_losses, row_weights, row_id: [micro, rows].
        finite: whether the step was applied.
        diagnostics: the hypergradient's; None in a step that moves no outer variable.
    """

    lower: Mean
    upper: Mean | None
    row_losses: RowLosses | None
    row_weights: Any
    row_id: Any
    finite: Any
    diagnostics: Diagnostics | None


@runtime_checkable
class Step(Protocol):
    """One step: `(state, lower_batches [K, micro, ...], upper_batches [micro, ...], updates) -> (state, report)`."""

    def __call__(
        self,
        state: SolverState,
        lower_batches: Batch,
        upper_batches: Batch,
        updates: Collection[Level] = BOTH,
    ) -> tuple[SolverState, StepReport]: ...


class Solver(NamedTuple):
    """A bilevel solver.

    Attributes:
        init: `(key, inner) -> SolverState`.
        step: see `Step`. `updates` is static: levels left out are evaluated where needed and put back.
    """

    init: Callable[[Array, PyTree], SolverState]
    step: Step


def weighting_of(
    problem: Problem | RowProblem, outer: PyTree | None
) -> Callable[[Array], tuple[PyTree, PyTree]]:
    """Returns how outer variables and memory begin: by the weighting, or as given for a general problem.

    Raises:
        ValueError: a general problem without outer variables to begin with.
    """
    if isinstance(problem, RowProblem):
        return problem.weighting.init
    if outer is None:
        raise ValueError("a general problem has no weighting to begin with: pass outer_start=")
    return lambda key: (outer, ())


def initial_state(
    key: Array,
    inner: PyTree,
    outer: PyTree,
    memory: PyTree,
    extra: PyTree,
    inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
) -> SolverState:
    """Returns a state at step zero with fresh optimizer states."""
    zero = jnp.zeros((), jnp.int32)
    return SolverState(
        inner=Iterate(inner, inner_optimizer.init(inner)),
        outer=Iterate(outer, outer_optimizer.init(outer)),
        memory=memory,
        extra=extra,
        key=key,
        step=zero,
        skipped=zero,
        skipped_in_a_row=zero,
    )


def visited_rows(lower_batches: Batch) -> dict[str, Any]:
    """Returns the extra argument `visited` of outer optimizers on rows: the ids in the last lower batch."""
    return {"visited": lower_batches["row_id"][-1]} if "row_id" in lower_batches else {}


def conclude(
    old: SolverState,
    new: SolverState,
    updates: Collection[Level],
    finite: Array,
    passed: LowerPass,
    weighed: Weighed,
    last_batches: Batch,
    upper: Mean | None,
    diagnostics: Diagnostics | None,
) -> tuple[SolverState, StepReport]:
    """Returns what every step returns: the state to go on with, and the report.

    That is the new state if all of it is finite, else the old one with the step counted as skipped. Levels that are
    not among `updates` keep their variables; what follows from the rows alone (memory, key) moves.

    Args:
        old: the state before the step.
        new: the state that the step would lead to.
        updates: the levels to move.
        finite: whether everything that the step computed is.
        passed: the last lower step's gradient pass.
        weighed: the last lower batch under the outer variables.
        last_batches: that batch.
        upper: the upper loss, where the step needed it.
        diagnostics: of the hypergradient, where there was one.
    """
    kept = new.replace(
        inner=new.inner if "inner" in updates else old.inner,
        outer=new.outer if "outer" in updates else old.outer,
    )
    chosen = optax.tree.where(finite, kept.replace(key=None), old.replace(key=None))
    failed = jnp.where(finite, 0, 1)
    state = chosen.replace(
        key=new.key,
        step=old.step + 1,
        skipped=old.skipped + failed,
        skipped_in_a_row=jnp.where(finite, 0, old.skipped_in_a_row + 1),
    )
    return state, StepReport(
        lower=passed.loss,
        upper=upper,
        row_losses=passed.row_losses,
        row_weights=weighed.weights,
        row_id=last_batches.get("row_id"),
        finite=finite,
        diagnostics=diagnostics,
    )
