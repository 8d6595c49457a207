"""What can be asked of a lower level, whatever its form.

What the outer gradient is made from is called the *signal*. Of a row problem it is a number a row, the derivative
with respect to the row's weight, and needs no derivative with respect to anything else; the weighting pulls it back
to the outer variables once a step. Of a general problem it is the outer gradient already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bilevel.core.losses import Mean, RowLosses
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree


class Weighed(NamedTuple):
    """A batch under the current outer variables.

    Attributes:
        weights: [micro, rows], or None for a general problem.
        losses: the row losses that the weights were made from; None where they need none.
        pull_back: from a signal to the outer gradient, without the outer penalty's.
        with_penalty: adds the outer penalty's gradient on this batch to an outer gradient.
    """

    weights: Any
    losses: RowLosses | None
    pull_back: Callable[[PyTree], PyTree]
    with_penalty: Callable[[PyTree], PyTree]

    def outer_gradient(self, signal: PyTree) -> PyTree:
        """Returns the outer gradient that a signal stands for, the outer penalty's included."""
        return self.with_penalty(self.pull_back(signal))


class LowerPass(NamedTuple):
    """One gradient pass over a batch: the loss, its inner gradient, its signal, and its row losses (rows only)."""

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


class LowerLevel(NamedTuple):
    """Operations on the lower level. Batches carry a leading micro-batch axis.

    Attributes:
        visit: `(outer, memory, inner, batches) -> Visit`: weighs and differentiates by one forward pass, if there is
            one micro-batch. With `keep=True` what that pass left is kept for a cross signal, where it can be.
        weigh: `(outer, memory, inner, batches) -> Weighed`; takes `losses=` of the batch's rows where they are known.
        gradient: `(outer, weights, inner, batches) -> LowerPass`; with `twice=True` one that can be differentiated.
        cross_signal: `(outer, weights, inner, batches, direction) -> signal` of
            d/d outer < grad_inner lower, direction >.
        linearised_gradient: `(outer, weights, inner, batches, direction) -> LinearisedPass`: gradient, Hessian and
            cross product together, by one jvp of the gradient (forward over reverse).
        remember: `(memory, batches, row_losses) -> memory`.
        loss: `(outer, weights, inner, batch) -> Mean` of one micro-batch at fixed weights, for second derivatives.
        outputs: `(inner, batch) -> tree`, where the problem says what its outputs are; else None.
        loss_of_outputs: `(outer, weights, outputs, batch) -> Mean`, likewise.
    """

    visit: Callable[..., Visit]
    weigh: Callable[..., Weighed]
    gradient: Callable[..., LowerPass]
    cross_signal: Callable[[PyTree, Any, PyTree, Batch, PyTree], PyTree]
    linearised_gradient: Callable[[PyTree, Any, PyTree, Batch, PyTree], LinearisedPass]
    remember: Callable[[PyTree, Batch, Any], PyTree]
    loss: Callable[[PyTree, Any, PyTree, Batch], Mean]
    outputs: Callable[[PyTree, Batch], PyTree] | None = None
    loss_of_outputs: Callable[[PyTree, Any, PyTree, Batch], Mean] | None = None
