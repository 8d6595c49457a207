"""The optimizer-aware rule: the exact derivative through one step of any optax chain."""

from __future__ import annotations

import jax
import optax

from bilevel.core.hypergradient import Adjoint, Direction, Levels, Point
from bilevel.core.optimizer_step import differentiable_step, has_derivative
from bilevel.core.tree import PyTree


def optimizer_aware() -> Adjoint:
    """q = - (d update / d gradient)^T grad_inner upper, for the optimizer's own update.

    The inner variables move by inner' = inner + update(g), so d upper(inner') / d outer is the cross derivative of
    < g, (d update / d gradient)^T grad upper(inner') > at the old variables. One vjp of the whole optax chain with
    its present moments gives it: clipping, preconditioning, weight decay and schedules included, no formula an
    optimizer. Exact for one lower step; of several it differentiates the last.

    Entries without a gradient where the update has no moderate derivative (under Adam, embeddings of tokens that no
    batch held so far) are left out: see `bilevel.core.optimizer_step`.

    Raises:
        ValueError: when the optimizer has no derivative (sign-based updates such as lion).

    References:
        Choe et al., Making Scalable Meta Learning Practical (SAMA), NeurIPS 2023, which takes Adam's derivative by
        hand, the upper gradient at the same point, and a finite difference for the cross derivative.
    """

    def init(levels: Levels, inner: PyTree) -> tuple[()]:
        if not has_derivative(levels.optimizer, inner):
            raise ValueError(
                "optimizer_aware: this inner optimizer's update does not depend smoothly on the gradient (sign-based, "
                "like lion): use identity, or an optimizer with a derivative such as adamw or sgd"
            )
        return ()

    def solve(levels: Levels, point: Point, upper_gradient: PyTree, state: PyTree) -> Direction:
        def inner_after(gradient: PyTree) -> PyTree:
            return differentiable_step(levels.optimizer, gradient, point.last).inner

        _, pull_back = jax.vjp(inner_after, point.gradient)
        q = optax.tree.scale(-1.0, pull_back(upper_gradient)[0])
        return Direction(q)

    return Adjoint(init, solve, at="last")
