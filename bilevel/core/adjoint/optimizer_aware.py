"""The optimizer-aware rule: the exact derivative through one step of any optax chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from bilevel.core.hypergradient import Adjoint, Direction, Levels, Point
from bilevel.core.tree import PyTree, norm

_TINY = 1e-12


def optimizer_aware() -> Adjoint:
    """q = - (d update / d gradient)^T grad_inner upper, for the optimizer's own update.

    The inner variables move by inner' = inner + update(g), so d upper(inner') / d outer is the cross derivative of
    < g, (d update / d gradient)^T grad upper(inner') > at the old variables. One vjp of the whole optax chain with
    its present moments gives it: clipping, preconditioning, weight decay and schedules included, no formula an
    optimizer. Exact for one lower step; of several it differentiates the last.

    Entries whose gradient is exactly zero (embeddings of tokens that the batch does not hold) are linearised a hair
    away from zero, where Adam's square root has a derivative, and their cotangent is dropped: their gradient does
    not depend on the weights, so nothing is lost, while one NaN there would spread over all entries through
    clipping by the global norm.

    Raises:
        ValueError: when the optimizer has no derivative (sign-based updates such as lion).

    References:
        Choe et al., Making Scalable Meta Learning Practical (SAMA), NeurIPS 2023, which takes Adam's derivative by
        hand, the upper gradient at the same point, and a finite difference for the cross derivative.
    """

    def init(levels: Levels, inner: PyTree) -> tuple[()]:
        if not _has_derivative(levels.optimizer, inner):
            raise ValueError(
                "optimizer_aware: this inner optimizer's update does not depend smoothly on the gradient (sign-based, "
                "like lion): use identity, or an optimizer with a derivative such as adamw or sgd"
            )
        return ()

    def solve(levels: Levels, point: Point, upper_gradient: PyTree, state: PyTree) -> Direction:
        dead = jax.tree.map(lambda g: g == 0, point.gradient)
        nudged = jax.tree.map(_nudge, point.gradient, dead)
        cotangent = jax.tree.map(_drop, upper_gradient, dead)

        def update(gradient: PyTree) -> PyTree:
            return levels.optimizer.update(gradient, point.last.optimizer, point.last.inner)[0]

        updates, pull_back = jax.vjp(update, nudged)
        (pulled,) = pull_back(optax.tree.cast_like(cotangent, updates))
        q = jax.tree.map(lambda q, dead: -_drop(q, dead), pulled, dead)
        return Direction(q, at=point.last.inner)

    return Adjoint(init, solve)


def _nudge(gradient: jax.Array, dead: jax.Array) -> jax.Array:
    return jnp.where(dead, jnp.asarray(_TINY, gradient.dtype), gradient)


def _drop(vector: jax.Array, dead: jax.Array) -> jax.Array:
    return jnp.where(dead, jnp.zeros_like(vector), vector)


def _has_derivative(optimizer: optax.GradientTransformation, inner: PyTree) -> bool:
    """Whether the update's vjp is not zero everywhere, tried on a generic gradient."""
    generic = optax.tree.random_like(jax.random.key(0), inner, jax.random.normal)
    state = optimizer.update(generic, optimizer.init(inner), inner)[1]
    updates, pull_back = jax.vjp(
        lambda g: optimizer.update(g, state, inner)[0], optax.tree.scale(0.5, generic)
    )
    return bool(norm(pull_back(jax.tree.map(jnp.ones_like, updates))[0]) > 0)
