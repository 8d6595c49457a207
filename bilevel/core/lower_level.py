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
from bilevel.core.losses import Mean, RowLosses
from bilevel.core.problem import Batch, OutputLoss, Problem, RowProblem
from bilevel.core.tree import PyTree


class Weighed(NamedTuple):
    """A batch under the current outer variables.

    Attributes:
        weights: [micro, rows], or None for a general problem.
        outer_gradient: from a signal to the outer gradient; adds the outer penalty's.
    """

    weights: Float[Array, "micro rows"] | None
    outer_gradient: Callable[[PyTree], PyTree]


class LowerPass(NamedTuple):
    """One gradient pass over a batch: the loss, its inner gradient, its signal, and its row losses (rows only)."""

    loss: Mean
    gradient: PyTree
    signal: PyTree
    row_losses: RowLosses | None


class LowerLevel(NamedTuple):
    """Operations on the lower level. Batches carry a leading micro-batch axis.

    Attributes:
        weigh: `(outer, memory, inner, batches) -> Weighed`.
        gradient: `(outer, weights, inner, batches) -> LowerPass`.
        cross_signal: `(outer, weights, inner, batches, direction) -> signal` of
            d/d outer < grad_inner lower, direction >.
        remember: `(memory, batches, row_losses) -> memory`.
        loss: `(outer, weights, inner, batch) -> Mean` of one micro-batch at fixed weights, for second derivatives.
        outputs: `(inner, batch) -> tree`, where the problem says what its outputs are; else None.
        loss_of_outputs: `(outer, weights, outputs, batch) -> Mean`, likewise.
    """

    weigh: Callable[[PyTree, PyTree, PyTree, Batch], Weighed]
    gradient: Callable[[PyTree, Any, PyTree, Batch], LowerPass]
    cross_signal: Callable[[PyTree, Any, PyTree, Batch, PyTree], PyTree]
    remember: Callable[[PyTree, Batch, Any], PyTree]
    loss: Callable[[PyTree, Any, PyTree, Batch], Mean]
    outputs: Callable[[PyTree, Batch], PyTree] | None = None
    loss_of_outputs: Callable[[PyTree, Any, PyTree, Batch], Mean] | None = None


def lower_level(problem: Problem | RowProblem) -> LowerLevel:
    """Returns the lower level's operations for either form of a problem."""
    return _of_rows(problem) if isinstance(problem, RowProblem) else _of_functions(problem)


def _of_rows(problem: RowProblem) -> LowerLevel:
    weighting, reduction = problem.weighting, problem.reduction

    def weigh(outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch) -> Weighed:
        losses = row_losses(problem, inner, batches) if weighting.needs_losses else None
        weights, pull_back = jax.vjp(
            lambda outer: weighting.weights(outer, memory, batches, jax.lax.stop_gradient(losses)), outer
        )

        def outer_gradient(signal: Float[Array, "micro rows"]) -> PyTree:
            (gradient,) = pull_back(signal.astype(weights.dtype))
            if problem.outer_penalty is None:
                return gradient
            return optax.tree.add(gradient, jax.grad(problem.outer_penalty)(outer, memory, batches))

        return Weighed(weights, outer_gradient)

    def gradient(
        outer: PyTree, weights: Float[Array, "micro rows"], inner: PyTree, batches: Batch
    ) -> LowerPass:
        def one(batch: Batch, weights: Float[Array, " rows"]) -> tuple[tuple[Mean, PyTree], RowLosses]:
            def total(inner: PyTree) -> tuple[Array, tuple[Array, RowLosses]]:
                losses = problem.row_losses(inner, batch)
                mean = losses.weighted(weights, reduction)
                return mean.total, (mean.count, losses)

            (value, (count, losses)), gradient = jax.value_and_grad(total, has_aux=True)(inner)
            return (Mean(value, count), gradient), losses

        (loss, gradient), losses = over_micro_batches(one, batches, weights)
        signal = losses.contributions(reduction) / jnp.maximum(loss.count, 1)
        return LowerPass(loss, divide(gradient, loss.count), signal, losses)

    def cross_signal(
        outer: PyTree, weights: Float[Array, "micro rows"], inner: PyTree, batches: Batch, direction: PyTree
    ) -> Float[Array, "micro rows"]:
        scores, losses = row_scores(problem, inner, batches, direction)
        return scores / jnp.maximum(losses.denominator(reduction), 1)

    def loss(outer: PyTree, weights: Float[Array, " rows"], inner: PyTree, batch: Batch) -> Mean:
        return problem.row_losses(inner, batch).weighted(weights, reduction)

    level = LowerLevel(weigh, gradient, cross_signal, weighting.update, loss)
    if not isinstance(problem.row_losses, OutputLoss):
        return level
    split = problem.row_losses

    def loss_of_outputs(outer: PyTree, weights: Float[Array, " rows"], outputs: PyTree, batch: Batch) -> Mean:
        return split.loss(outputs, batch).weighted(weights, reduction)

    return level._replace(outputs=split.outputs, loss_of_outputs=loss_of_outputs)


def _of_functions(problem: Problem) -> LowerLevel:
    def weigh(outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch) -> Weighed:
        return Weighed(None, lambda signal: signal)

    def gradient(outer: PyTree, weights: None, inner: PyTree, batches: Batch) -> LowerPass:
        loss, (signal, gradient) = mean_value_and_gradient(problem.lower, (outer, inner), batches)
        return LowerPass(loss, gradient, signal, None)

    def cross_signal(
        outer: PyTree, weights: None, inner: PyTree, batches: Batch, direction: PyTree
    ) -> PyTree:
        def slope(outer: PyTree, batch: Batch) -> Mean:
            def total(inner: PyTree) -> tuple[Array, Array]:
                mean = problem.lower(outer, inner, batch)
                return mean.total, jnp.asarray(mean.count)

            _, slope, count = jax.jvp(total, (inner,), (direction,), has_aux=True)
            return Mean(slope, count)

        return mean_value_and_gradient(slope, (outer,), batches)[1][0]

    def loss(outer: PyTree, weights: None, inner: PyTree, batch: Batch) -> Mean:
        return problem.lower(outer, inner, batch)

    level = LowerLevel(weigh, gradient, cross_signal, lambda memory, batches, losses: memory, loss)
    if not isinstance(problem.lower, OutputLoss):
        return level
    split = problem.lower

    def loss_of_outputs(outer: PyTree, weights: None, outputs: PyTree, batch: Batch) -> Mean:
        return split.loss(outer, outputs, batch)

    return level._replace(outputs=split.outputs, loss_of_outputs=loss_of_outputs)


def row_losses(problem: RowProblem, inner: PyTree, batches: Batch) -> RowLosses:
    """Returns the losses of all rows, [micro, rows], by forward passes alone."""
    return over_micro_batches(lambda batch: ((), problem.row_losses(inner, batch)), batches)[1]


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
