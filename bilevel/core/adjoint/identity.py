"""The identity rule: one gradient step's worth of implicit gradient."""

from __future__ import annotations

import optax

from bilevel.core.hypergradient import Adjoint, Direction, Levels, Point
from bilevel.core.tree import PyTree


def identity(step_size: float) -> Adjoint:
    """q = step_size * grad_inner upper, the inverse Hessian replaced by a multiple of the identity.

    With the upper gradient after the lower step and the cross derivative before it, this is the exact derivative
    of the upper loss through one gradient-descent step of that size; for any other optimizer it keeps the
    direction of plain gradient descent. Rules that rescale (exponentiated gradient with a tuned rate) see only
    the product of `step_size` and their own rate.

    Args:
        step_size: learning rate of the gradient step that is differentiated through.

    References:
        Luketina et al., Scalable Gradient-Based Tuning of Continuous Regularization Hyperparameters (T1-T2), 2016.
    """

    def solve(levels: Levels, point: Point, upper_gradient: PyTree, state: PyTree) -> Direction:
        return Direction(optax.tree.scale(step_size, upper_gradient))

    return Adjoint(lambda levels, inner: (), solve, at="last")
