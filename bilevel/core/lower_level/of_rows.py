"""The lower level of a row problem: a weighted mean of row losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bilevel.core.accumulate import divide, over_micro_batches
from bilevel.core.losses import Mean, Reduction, RowLosses, over
from bilevel.core.lower_level.operations import LinearisedPass, LowerPass, Visit, Weighed
from bilevel.core.problem import Batch, OutputLoss, RowProblem, Seen, Weighting
from bilevel.core.tree import PyTree


@dataclass(frozen=True)
class LowerRows:
    """The operations of a row problem's lower level, see `LowerLevel`. Weights are [micro, rows].

    Attributes:
        problem: the bilevel problem.
    """

    problem: RowProblem

    @property
    def _once(self) -> Callable[[PyTree, Batch], RowLosses]:
        return self.problem.first_order or self.problem.row_losses

    def visit(
        self, outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, *, keep: bool = False
    ) -> Visit:
        reduction = self.problem.reduction
        pieces = jax.tree.leaves(batches)[0].shape[0]
        if pieces > 1:  # of a micro-batch nothing is held while the next one runs
            weighed = self.weigh(outer, memory, inner, batches)
            return Visit(weighed, self.gradient(outer, weighed.weights, inner, batches))
        only = jax.tree.map(lambda x: x[0], batches)
        forward = keep and self._once is self.problem.row_losses
        near = _rows_near(self._once, inner, only, reduction, forward)
        losses = jax.tree.map(lambda x: x[None], near.losses)
        # Losses are there before weights and gradient: weightings that read them need no forward pass of their own.
        weighed = self.weigh(outer, memory, inner, batches, losses)
        loss = near.losses.weighted(weighed.weights[0], reduction)
        slope = divide(near.pull_back(weighed.weights[0]), loss.count)
        passed = LowerPass(loss, slope, _per_row(losses, reduction, loss.count), losses)
        push_forward = near.push_forward
        if push_forward is None:
            return Visit(weighed, passed)
        return Visit(weighed, passed, lambda q: over(push_forward(q)[None], loss.count))

    def weigh(
        self, outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, losses: RowLosses | None = None
    ) -> Weighed:
        weighting, penalty = self.problem.weighting, self.problem.outer_penalty
        if not weighting.needs_losses:
            read = None
        else:
            read = row_losses(self.problem, inner, batches) if losses is None else losses
            read = jax.lax.stop_gradient(read)
        weights, transposed, factors = jax.vjp(
            lambda outer: weights_and_factors(weighting, outer, memory, batches, read),
            outer,
            has_aux=True,
        )

        def pull_back(signal: Float[Array, "micro rows"]) -> PyTree:
            return transposed(signal.astype(weights.dtype))[0]

        if penalty is None:
            return Weighed(weights, read, pull_back, None, factors)
        return Weighed(
            weights, read, pull_back, lambda: jax.grad(penalty)(outer, memory, batches, read), factors
        )

    def gradient(
        self,
        outer: PyTree,
        weights: Float[Array, "micro rows"],
        inner: PyTree,
        batches: Batch,
        *,
        twice: bool = False,
    ) -> LowerPass:
        reduction = self.problem.reduction
        losses_of = self.problem.row_losses if twice else self._once

        def one(batch: Batch, weights: Float[Array, " rows"]) -> tuple[tuple[Mean, PyTree], RowLosses]:
            near = _rows_near(losses_of, inner, batch, reduction)
            return (near.losses.weighted(weights, reduction), near.pull_back(weights)), near.losses

        (loss, gradient), losses = over_micro_batches(one, batches, weights)
        return LowerPass(loss, divide(gradient, loss.count), _per_row(losses, reduction, loss.count), losses)

    def cross_signal(
        self,
        outer: PyTree,
        weights: Float[Array, "micro rows"],
        inner: PyTree,
        batches: Batch,
        direction: PyTree,
    ) -> Float[Array, "micro rows"]:
        scores, losses = row_scores(self.problem, inner, batches, direction)
        return over(scores, losses.denominator(self.problem.reduction))

    def linearised_gradient(
        self,
        outer: PyTree,
        weights: Float[Array, "micro rows"],
        inner: PyTree,
        batches: Batch,
        direction: PyTree,
    ) -> LinearisedPass:
        reduction = self.problem.reduction

        def one(
            batch: Batch, weights: Float[Array, " rows"]
        ) -> tuple[tuple[Mean, PyTree, PyTree], tuple[RowLosses, Array]]:
            def gradient_and_contributions(inner: PyTree) -> tuple[tuple[PyTree, Array], tuple]:
                near = _rows_near(self.problem.row_losses, inner, batch, reduction)
                gradient, contributions = near.pull_back(weights), near.losses.contributions(reduction)
                return (gradient, contributions), (near.losses.weighted(weights, reduction), near.losses)

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
            over(scores, loss.count),
        )

    def loss(self, outer: PyTree, weights: Float[Array, " rows"], inner: PyTree, batch: Batch) -> Mean:
        return self.problem.row_losses(inner, batch).weighted(weights, self.problem.reduction)

    def remember(self, memory: PyTree, seen: Seen) -> PyTree:
        return self.problem.weighting.update(memory, seen)

    @property
    def outputs(self) -> Callable[[PyTree, Batch], PyTree] | None:
        losses = self.problem.row_losses
        return losses.outputs if isinstance(losses, OutputLoss) else None

    def loss_of_outputs(
        self, outer: PyTree, weights: Float[Array, " rows"], outputs: PyTree, batch: Batch
    ) -> Mean:
        assert isinstance(self.problem.row_losses, OutputLoss)  # `outputs` was asked first
        return self.problem.row_losses.loss(outputs, batch).weighted(weights, self.problem.reduction)


def weights_and_factors(
    weighting: Weighting, outer: PyTree, memory: PyTree, batches: Batch, losses: RowLosses | None
) -> tuple[Float[Array, "*rows"], dict[str, Array] | None]:
    """Row weights with the factors that they are the product of, computed once."""
    if weighting.factors is None:
        return weighting.weights(outer, memory, batches, losses), None
    factors = weighting.factors(outer, memory, batches, losses)
    return reduce(jnp.multiply, factors.values()), factors


def _per_row(losses: RowLosses, reduction: Reduction, count: Array) -> Float[Array, "micro rows"]:
    """The derivative of the lower loss with respect to each row's weight."""
    return over(losses.contributions(reduction), count)


def row_losses(problem: RowProblem, inner: PyTree, batches: Batch) -> RowLosses:
    """The losses of all rows, [micro, rows], by forward passes alone."""
    losses_of = problem.first_order or problem.row_losses
    return over_micro_batches(lambda batch: ((), losses_of(inner, batch)), batches)[1]


def row_scores(
    problem: RowProblem, inner: PyTree, batches: Batch, direction: PyTree
) -> tuple[Float[Array, "micro rows"], RowLosses]:
    """< grad contribution_i, direction > of all rows by one forward-mode pass, and the row losses.

    One jvp costs what a gradient costs in FLOPs, holds no tape, and is exact in bf16, where finite differences of
    the losses are off by 2% to 400%.
    """

    def one(batch: Batch) -> tuple[tuple[()], tuple[Array, RowLosses]]:
        contributions = _contributions(problem.row_losses, batch, problem.reduction)
        _, scores, losses = jax.jvp(
            contributions, (inner,), (optax.tree.cast_like(direction, inner),), has_aux=True
        )
        return (), (scores, losses)

    return over_micro_batches(one, batches)[1]


class _RowsNear(NamedTuple):
    """One micro-batch's rows as a function of the inner variables, to first order.

    Attributes:
        losses: the row losses at the point.
        pull_back: from row weights to the gradient of the weighted sum of the rows' contributions.
        push_forward: from a direction to < grad contribution_i, direction >, without another forward pass; None
            unless it was asked for.
    """

    losses: RowLosses
    pull_back: Callable[[Float[Array, " rows"]], PyTree]
    push_forward: Callable[[PyTree], Float[Array, " rows"]] | None


def _rows_near(
    losses_of: Callable[[PyTree, Batch], RowLosses],
    inner: PyTree,
    batch: Batch,
    reduction: Reduction,
    forward: bool = False,
) -> _RowsNear:
    """Runs the rows forward once, for a gradient and, if wanted, for derivatives along directions."""
    contributions = _contributions(losses_of, batch, reduction)
    if not forward:
        values, transposed, losses = jax.vjp(contributions, inner, has_aux=True)
        push_forward = None
    else:
        values, tangents, losses = jax.linearize(contributions, inner, has_aux=True)
        transposed = jax.linear_transpose(tangents, inner)

        def push_forward(direction: PyTree) -> Float[Array, " rows"]:
            return tangents(optax.tree.cast_like(direction, inner))

    return _RowsNear(losses, lambda weights: transposed(weights.astype(values.dtype))[0], push_forward)


def _contributions(
    losses_of: Callable[[PyTree, Batch], RowLosses], batch: Batch, reduction: Reduction
) -> Callable[[PyTree], tuple[Float[Array, " rows"], RowLosses]]:
    """`inner -> (what each row adds to the batch's total, row losses)`."""

    def contributions(inner: PyTree) -> tuple[Float[Array, " rows"], RowLosses]:
        losses = losses_of(inner, batch)
        return losses.contributions(reduction), losses

    return contributions
