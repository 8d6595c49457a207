"""What every solver is: pure functions over one state, as in optax."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import struct
from jaxtyping import Array

from bilevel.core.hypergradient import Diagnostics
from bilevel.core.losses import Mean, RowLosses
from bilevel.core.lower_steps import Iterate
from bilevel.core.problem import NO_SIZES, Batch, CameFrom, Sizes
from bilevel.core.tree import PyTree

Level = str
"""`inner`, `outer`, or `outer.NAME`: one part of outer variables that are a dict, as a product's are."""

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
        row_losses: [micro, rows].
        row_weights: [micro, rows].
        row_id: [micro, rows].
        factors: weights by part of a product, [micro, rows] each, whose product the weights are; else None.
        finite: whether the step was applied.
        diagnostics: the hypergradient's; None in a step that moves no outer variable.
    """

    lower: Mean
    upper: Mean | None
    row_losses: RowLosses | None
    row_weights: Any
    row_id: Any
    factors: dict[str, Any] | None
    finite: Any
    diagnostics: Diagnostics | None


@runtime_checkable
class Init(Protocol):
    """A state to begin with: `(key, inner variables, sizes) -> state`. Weightings that hold tables need sizes."""

    def __call__(self, key: Array, params: PyTree, sizes: Sizes = NO_SIZES) -> SolverState: ...


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


@runtime_checkable
class Carry(Protocol):
    """The state after rows came and went: `(state, sizes, came_from) -> state`. Not to be traced."""

    def __call__(self, state: SolverState, sizes: Sizes, came_from: CameFrom) -> SolverState: ...


class Solver(NamedTuple):
    """A bilevel solver.

    Attributes:
        init: see `Init`.
        step: see `Step`. `updates` is static: levels and parts left out are evaluated where needed and put back,
            together with their optimizer's state.
        carry: see `Carry`. Tables (`Weighting.tables`) follow their rows, with the outer optimizer's state of each row;
            rows that came from none begin as `init` has them; all else stays.
    """

    init: Init
    step: Step
    carry: Carry
