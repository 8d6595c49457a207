"""The lower level of a general problem: one function of outer and inner variables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import optax

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.losses import Mean, RowLosses
from bilevel.core.lower_level.operations import LinearisedPass, LowerPass, Visit, Weighed
from bilevel.core.problem import Batch, OutputLoss, Problem, Seen
from bilevel.core.tree import PyTree


@dataclass(frozen=True)
class LowerFunction:
    """The operations of a general problem's lower level, see `LowerLevel`. Weights are None throughout.

    Attributes:
        problem: the bilevel problem.
    """

    problem: Problem

    def visit(
        self, outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, *, keep: bool = False
    ) -> Visit:
        return Visit(self.weigh(outer, memory, inner, batches), self.gradient(outer, None, inner, batches))

    def weigh(
        self, outer: PyTree, memory: PyTree, inner: PyTree, batches: Batch, losses: RowLosses | None = None
    ) -> Weighed:
        return Weighed(None, None, lambda signal: signal)

    def gradient(
        self, outer: PyTree, weights: None, inner: PyTree, batches: Batch, *, twice: bool = False
    ) -> LowerPass:
        loss, (signal, gradient) = mean_value_and_gradient(self.problem.lower, (outer, inner), batches)
        return LowerPass(loss, gradient, signal, None)

    def cross_signal(
        self, outer: PyTree, weights: None, inner: PyTree, batches: Batch, direction: PyTree
    ) -> PyTree:
        # The outer gradient differentiated along the inner direction, and not the other way round: nothing of the
        # jvp is taped, and lower levels with a reverse rule alone (layers that train inside) are served too.
        def outer_gradient(inner: PyTree) -> PyTree:
            def lower(outer: PyTree, batch: Batch) -> Mean:
                return self.problem.lower(outer, inner, batch)

            return mean_value_and_gradient(lower, (outer,), batches)[1][0]

        return jax.jvp(outer_gradient, (inner,), (optax.tree.cast_like(direction, inner),))[1]

    def linearised_gradient(
        self, outer: PyTree, weights: None, inner: PyTree, batches: Batch, direction: PyTree
    ) -> LinearisedPass:
        def gradients(inner: PyTree) -> tuple[tuple[PyTree, PyTree], Mean]:
            loss, gradients = mean_value_and_gradient(self.problem.lower, (outer, inner), batches)
            return gradients, loss

        tangent = optax.tree.cast_like(direction, inner)
        (signal, gradient), (cross, product), loss = jax.jvp(gradients, (inner,), (tangent,), has_aux=True)
        return LinearisedPass(LowerPass(loss, gradient, signal, None), product, cross)

    def remember(self, memory: PyTree, seen: Seen) -> PyTree:
        return memory

    def loss(self, outer: PyTree, weights: None, inner: PyTree, batch: Batch) -> Mean:
        return self.problem.lower(outer, inner, batch)

    @property
    def outputs(self) -> Callable[[PyTree, Batch], PyTree] | None:
        lower = self.problem.lower
        return lower.outputs if isinstance(lower, OutputLoss) else None

    def loss_of_outputs(self, outer: PyTree, weights: None, outputs: PyTree, batch: Batch) -> Mean:
        assert isinstance(self.problem.lower, OutputLoss)  # `outputs` was asked first
        return self.problem.lower.loss(outer, outputs, batch)
