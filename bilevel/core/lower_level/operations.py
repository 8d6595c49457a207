"""What can be asked of a lower level, whatever its form.

What the outer gradient is made from is called the *signal*. Of a row problem it is a number a row, the derivative
with respect to the row's weight, and needs no derivative with respect to anything else; the weighting pulls it back
to the outer variables once a step. Of a general problem it is the outer gradient already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array

from bilevel.core.losses import Mean, RowLosses
from bilevel.core.problem import Batch, Seen
from bilevel.core.tree import PyTree, add_scaled


class Weighed(NamedTuple):
    """A batch under the current outer variables.

    Attributes:
        weights: [micro, rows], or None for a general problem.
        losses: the row losses that the weights were made from; None where they need none.
        pull_back: from a signal to the outer gradient, without the outer penalty's.
        penalty_gradient: `() -> gradient` of the outer penalty on this batch; None without a penalty.
        factors: weights by name whose product they are; None where there is one factor alone.
    """

    weights: Any
    losses: RowLosses | None
    pull_back: Callable[[PyTree], PyTree]
    penalty_gradient: Callable[[], PyTree] | None = None
    factors: dict[str, Array] | None = None

    def with_penalty(self, gradient: PyTree, factor: Array | float = 1.0) -> PyTree:
        """An outer gradient with factor times the outer penalty's on this batch added."""
        if self.penalty_gradient is None:
            return gradient
        return add_scaled(gradient, factor, self.penalty_gradient())

    def outer_gradient(self, signal: PyTree) -> PyTree:
        """The outer gradient that a signal stands for, the outer penalty's included."""
        return self.with_penalty(self.pull_back(signal))


class LowerPass(NamedTuple):
    """One gradient pass over a batch.

    Attributes:
        loss: the weighted lower loss.
        gradient: its gradient in the inner variables.
        signal: what the outer gradient is made from.
        row_losses: [micro, rows]; None for a general problem.
    """

    loss: Mean
    gradient: PyTree
    signal: PyTree
    row_losses: RowLosses | None


class Visit(NamedTuple):
    """A batch weighed and differentiated at one point.

    Attributes:
        weighed: the batch under the outer variables.
        passed: its gradient pass.
        cross_signal: from a direction to the signal of d/d outer < grad_inner lower, direction > at the same point, by
            what the pass left; None where nothing was kept.
    """

    weighed: Weighed
    passed: LowerPass
    cross_signal: Callable[[PyTree], PyTree] | None = None


class LinearisedPass(NamedTuple):
    """A gradient pass and its derivative along a direction of the inner variables.

    Attributes:
        passed: the gradient pass.
        hessian_product: the Hessian of the lower loss times the direction.
        cross_signal: the signal of d/d outer < grad_inner lower, direction >.
    """

    passed: LowerPass
    hessian_product: PyTree
    cross_signal: PyTree


@runtime_checkable
class LowerLevel(Protocol):
    """Operations on the lower level. Batches carry a leading micro-batch axis, but for `loss` and outputs."""

    def visit(
        self, outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, *, keep: bool = False
    ) -> Visit:
        """Weighs and differentiates by one forward pass, if there is one micro-batch.

        With `keep` what that pass left is kept for a cross signal, where it can be.
        """
        ...

    def weigh(
        self, outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, losses: RowLosses | None = None
    ) -> Weighed:
        """The batch under the outer variables; `losses` are those of its rows, where they are known."""
        ...

    def gradient(
        self, outer: PyTree, weights: Any, inner: PyTree, batches: Batch, *, twice: bool = False
    ) -> LowerPass:
        """A gradient pass; with `twice` one that can be differentiated."""
        ...

    def cross_signal(
        self, outer: PyTree, weights: Any, inner: PyTree, batches: Batch, direction: PyTree
    ) -> PyTree:
        """The signal of d/d outer < grad_inner lower, direction >."""
        ...

    def linearised_gradient(
        self, outer: PyTree, weights: Any, inner: PyTree, batches: Batch, direction: PyTree
    ) -> LinearisedPass:
        """Gradient, Hessian and cross product together, by one jvp of the gradient (forward over reverse)."""
        ...

    def remember(self, memory: PyTree, seen: Seen) -> PyTree:
        """The weighting's memory after a lower step."""
        ...

    def loss(self, outer: PyTree, weights: Any, inner: PyTree, batch: Batch) -> Mean:
        """The lower loss of one micro-batch at fixed weights, for second derivatives."""
        ...

    @property
    def outputs(self) -> Callable[[PyTree, Batch], PyTree] | None:
        """`(inner, batch) -> tree`, where the problem says what its outputs are."""
        ...

    def loss_of_outputs(self, outer: PyTree, weights: Any, outputs: PyTree, batch: Batch) -> Mean:
        """The lower loss of one micro-batch from its outputs, where there are any."""
        ...
