"""The lower level as solvers see it: the same few operations for row problems and for general ones.

What the outer gradient is made from is called the *signal*. Of a row problem it is a number a row, the derivative
with respect to the row's weight, and needs no derivative with respect to anything else; the weighting pulls it back
to the outer variables once a step. Of a general problem it is the outer gradient already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bilevel.core.accumulate import divide, mean_value_and_gradient, over_micro_batches
from bilevel.core.losses import Mean, Reduction, RowLosses
from bilevel.core.problem import Batch, OutputLoss, Problem, RowProblem
from bilevel.core.tree import PyTree


class Weighed(NamedTuple):
    """A batch under the current outer variables.

    Attributes:
        weights: [micro, rows], or None for a general problem.
        losses: the row losses that the weights were made from; None where they need none.
        pull_back: from a signal to the outer gradient, without the outer penalty's.
        with_penalty: adds the outer penalty's gradient on this batch to an outer gradient.
    """

    weights: Float[Array, "micro rows"] | None
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

    weigh: Callable[..., Weighed]
    gradient: Callable[..., LowerPass]
    cross_signal: Callable[[PyTree, Any, PyTree, Batch, PyTree], PyTree]
    linearised_gradient: Callable[[PyTree, Any, PyTree, Batch, PyTree], LinearisedPass]
    remember: Callable[[PyTree, Batch, Any], PyTree]
    loss: Callable[[PyTree, Any, PyTree, Batch], Mean]
    outputs: Callable[[PyTree, Batch], PyTree] | None = None
    loss_of_outputs: Callable[[PyTree, Any, PyTree, Batch], Mean] | None = None


def lower_level(problem: Problem | RowProblem) -> LowerLevel:
    """Returns the lower level's operations for either form of a problem."""
    return _of_rows(problem) if isinstance(problem, RowProblem) else _of_functions(problem)


def _of_rows(problem: RowProblem) -> LowerLevel:
    weighting, reduction = problem.weighting, problem.reduction
    once = problem.first_order or problem.row_losses

    def weigh(
        outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, losses: RowLosses | None = None
    ) -> Weighed:
        if losses is None and weighting.needs_losses:
            losses = row_losses(problem, inner, batches)
        weights, transposed = jax.vjp(
            lambda outer: weighting.weights(outer, memory, batches, jax.lax.stop_gradient(losses)), outer
        )

        def pull_back(signal: Float[Array, "micro rows"]) -> PyTree:
            return transposed(signal.astype(weights.dtype))[0]

        def with_penalty(gradient: PyTree) -> PyTree:
            if problem.outer_penalty is None:
                return gradient
            return optax.tree.add(gradient, jax.grad(problem.outer_penalty)(outer, memory, batches))

        return Weighed(weights, losses, pull_back, with_penalty)

    def weighted_gradient(
        losses_of: Callable[[PyTree, Batch], RowLosses],
        inner: PyTree,
        batch: Batch,
        weights: Float[Array, " rows"],
    ) -> tuple[PyTree, Mean, RowLosses]:
        def total(inner: PyTree) -> tuple[Array, tuple[Array, RowLosses]]:
            losses = losses_of(inner, batch)
            mean = losses.weighted(weights, reduction)
            return mean.total, (mean.count, losses)

        (value, (count, losses)), gradient = jax.value_and_grad(total, has_aux=True)(inner)
        return gradient, Mean(value, count), losses

    def gradient(
        outer: PyTree,
        weights: Float[Array, "micro rows"],
        inner: PyTree,
        batches: Batch,
        twice: bool = False,
    ) -> LowerPass:
        def one(batch: Batch, weights: Float[Array, " rows"]) -> tuple[tuple[Mean, PyTree], RowLosses]:
            losses_of = problem.row_losses if twice else once
            gradient, mean, losses = weighted_gradient(losses_of, inner, batch, weights)
            return (mean, gradient), losses

        (loss, gradient), losses = over_micro_batches(one, batches, weights)
        return LowerPass(loss, divide(gradient, loss.count), _per_row(losses, reduction, loss.count), losses)

    def cross_signal(
        outer: PyTree, weights: Float[Array, "micro rows"], inner: PyTree, batches: Batch, direction: PyTree
    ) -> Float[Array, "micro rows"]:
        scores, losses = row_scores(problem, inner, batches, direction)
        return scores / jnp.maximum(losses.denominator(reduction), 1)

    def linearised_gradient(
        outer: PyTree, weights: Float[Array, "micro rows"], inner: PyTree, batches: Batch, direction: PyTree
    ) -> LinearisedPass:
        def one(
            batch: Batch, weights: Float[Array, " rows"]
        ) -> tuple[tuple[Mean, PyTree, PyTree], tuple[RowLosses, Array]]:
            def gradient_and_contributions(inner: PyTree) -> tuple[tuple[PyTree, Array], tuple]:
                gradient, mean, losses = weighted_gradient(problem.row_losses, inner, batch, weights)
                return (gradient, losses.contributions(reduction)), (mean, losses)

            tangent = optax.tree.cast_like(direction, inner)
            (gradient, _), (product, scores), (mean, losses) = jax.jvp(
                gradient_and_contributions, (inner,), (tangent,), has_aux=True
            )
            return (mean, gradient, product), (losses, scores)

        (loss, gradient, product), (losses, scores) = over_micro_batches(one, batches, weights)
        signal = _per_row(losses, reduction, loss.count)
        return LinearisedPass(
            LowerPass(loss, divide(gradient, loss.count), signal, losses),
            divide(product, loss.count),
            scores / jnp.maximum(loss.count, 1),
        )

    def loss(outer: PyTree, weights: Float[Array, " rows"], inner: PyTree, batch: Batch) -> Mean:
        return problem.row_losses(inner, batch).weighted(weights, reduction)

    level = LowerLevel(weigh, gradient, cross_signal, linearised_gradient, weighting.update, loss)
    if not isinstance(problem.row_losses, OutputLoss):
        return level
    split = problem.row_losses

    def loss_of_outputs(outer: PyTree, weights: Float[Array, " rows"], outputs: PyTree, batch: Batch) -> Mean:
        return split.loss(outputs, batch).weighted(weights, reduction)

    return level._replace(outputs=split.outputs, loss_of_outputs=loss_of_outputs)


def _per_row(losses: RowLosses, reduction: Reduction, count: Array) -> Float[Array, "micro rows"]:
    """The derivative of the lower loss with respect to each row's weight."""
    return losses.contributions(reduction) / jnp.maximum(count, 1)


def _of_functions(problem: Problem) -> LowerLevel:
    def weigh(outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, losses: None = None) -> Weighed:
        return Weighed(None, None, lambda signal: signal, lambda gradient: gradient)

    def gradient(
        outer: PyTree, weights: None, inner: PyTree, batches: Batch, twice: bool = False
    ) -> LowerPass:
        loss, (signal, gradient) = mean_value_and_gradient(problem.lower, (outer, inner), batches)
        return LowerPass(loss, gradient, signal, None)

    def linearised_gradient(
        outer: PyTree, weights: None, inner: PyTree, batches: Batch, direction: PyTree
    ) -> LinearisedPass:
        def gradients(inner: PyTree) -> tuple[tuple[PyTree, PyTree], Mean]:
            loss, gradients = mean_value_and_gradient(problem.lower, (outer, inner), batches)
            return gradients, loss

        tangent = optax.tree.cast_like(direction, inner)
        (signal, gradient), (cross, product), loss = jax.jvp(gradients, (inner,), (tangent,), has_aux=True)
        return LinearisedPass(LowerPass(loss, gradient, signal, None), product, cross)

    def cross_signal(
        outer: PyTree, weights: None, inner: PyTree, batches: Batch, direction: PyTree
    ) -> PyTree:
        # The outer gradient differentiated along the inner direction, and not the other way round: nothing of the
        # jvp is taped, and lower levels with a reverse rule alone (layers that train inside) are served too.
        def outer_gradient(inner: PyTree) -> PyTree:
            def lower(outer: PyTree, batch: Batch) -> Mean:
                return problem.lower(outer, inner, batch)

            return mean_value_and_gradient(lower, (outer,), batches)[1][0]

        return jax.jvp(outer_gradient, (inner,), (optax.tree.cast_like(direction, inner),))[1]

    def loss(outer: PyTree, weights: None, inner: PyTree, batch: Batch) -> Mean:
        return problem.lower(outer, inner, batch)

    level = LowerLevel(
        weigh, gradient, cross_signal, linearised_gradient, lambda memory, batches, losses: memory, loss
    )
    if not isinstance(problem.lower, OutputLoss):
        return level
    split = problem.lower

    def loss_of_outputs(outer: PyTree, weights: None, outputs: PyTree, batch: Batch) -> Mean:
        return split.loss(outer, outputs, batch)

    return level._replace(outputs=split.outputs, loss_of_outputs=loss_of_outputs)


def row_losses(problem: RowProblem, inner: PyTree, batches: Batch) -> RowLosses:
    """Returns the losses of all rows, [micro, rows], by forward passes alone."""
    losses_of = problem.first_order or problem.row_losses
    return over_micro_batches(lambda batch: ((), losses_of(inner, batch)), batches)[1]


def row_scores(
    problem: RowProblem, inner: PyTree, batches: Batch, direction: PyTree
) -> tuple[Float[Array, "micro rows"], RowLosses]:
    """Returns < grad contribution_i, direction > of all rows by one forward-mode pass, and the row losses.

    One jvp costs what a gradient costs in FLOPs, holds no tape, and is exact in bf16, where finite differences of
    the losses are off by 2% to 400%.
    """

    def one(batch: Batch) -> tuple[tuple[()], tuple[Array, RowLosses]]:
        def contributions(inner: PyTree) -> tuple[Array, RowLosses]:
            losses = problem.row_losses(inner, batch)
            return losses.contributions(problem.reduction), losses

        _, scores, losses = jax.jvp(
            contributions, (inner,), (optax.tree.cast_like(direction, inner),), has_aux=True
        )
        return (), (scores, losses)

    return over_micro_batches(one, batches)[1]
