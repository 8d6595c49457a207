"""The lower level of a general problem: one function of outer and inner variables."""

from __future__ import annotations

import jax
import optax

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.losses import Mean
from bilevel.core.lower_level.operations import LinearisedPass, LowerLevel, LowerPass, Visit, Weighed
from bilevel.core.problem import Batch, OutputLoss, Problem
from bilevel.core.tree import PyTree


def of_functions(problem: Problem) -> LowerLevel:
    """Returns the operations of a general problem's lower level."""

    def weigh(outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, losses: None = None) -> Weighed:
        return Weighed(None, None, lambda signal: signal, lambda gradient: gradient)

    def gradient(
        outer: PyTree, weights: None, inner: PyTree, batches: Batch, twice: bool = False
    ) -> LowerPass:
        loss, (signal, gradient) = mean_value_and_gradient(problem.lower, (outer, inner), batches)
        return LowerPass(loss, gradient, signal, None)

    def visit(outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, keep: bool = False) -> Visit:
        weighed = weigh(outer, memory, inner, batches)
        return Visit(weighed, gradient(outer, None, inner, batches))

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
        visit,
        weigh,
        gradient,
        cross_signal,
        linearised_gradient,
        remember=lambda memory, batches, losses: memory,
        loss=loss,
    )
    if not isinstance(problem.lower, OutputLoss):
        return level
    split = problem.lower

    def loss_of_outputs(outer: PyTree, weights: None, outputs: PyTree, batch: Batch) -> Mean:
        return split.loss(outer, outputs, batch)

    return level._replace(outputs=split.outputs, loss_of_outputs=loss_of_outputs)
