"""An optimizer step that can be differentiated wherever training can be."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core.lower_steps import Iterate, descend
from bilevel.core.tree import PyTree, norm


class Smooth(NamedTuple):
    """The part of an iterate that has derivatives: inner variables, and the floating-point leaves of the state."""

    inner: PyTree
    moments: tuple[Array, ...]


def smooth_part(iterate: Iterate) -> Smooth:
    """What can carry a cotangent through a step."""
    return Smooth(
        iterate.inner, tuple(leaf for leaf in jax.tree.leaves(iterate.optimizer) if _is_smooth(leaf))
    )


def with_smooth_part(iterate: Iterate, part: Smooth) -> Iterate:
    """The iterate with its smooth part replaced; counters and keys stay."""
    moments = iter(part.moments)
    return Iterate(
        part.inner,
        jax.tree.map(lambda leaf: next(moments) if _is_smooth(leaf) else leaf, iterate.optimizer),
    )


def is_dead(gradient: PyTree) -> PyTree:
    """Which entries are zero, or so small that their squares leave the normal range of their type.

    Entries that have been dead at every step since the derivative's start do not depend on the outer variables: the
    embeddings of tokens that no batch holds. Adam's second moment of theirs is zero, where its root has none.
    """
    return jax.tree.map(lambda g: jnp.abs(g) <= _smallest(g), gradient)


def differentiable_step(
    optimizer: optax.GradientTransformation, gradient: PyTree, iterate: Iterate, dead: PyTree
) -> Iterate:
    """Takes an optimizer step that has a derivative which dead entries cannot spoil.

    At entries that are dead the step is linearised a hair away from zero, and what the gradient and the moments
    move there is dropped, in both directions of differentiation. One NaN there would spread over all entries
    through clipping by the global norm.

    Args:
        optimizer: any optax chain.
        gradient: what the optimizer is given.
        iterate: where the step begins.
        dead: which entries of the gradient are, see `is_dead`.
    """
    after = descend(optimizer, iterate, gradient)
    return with_smooth_part(after, _smooth_step(optimizer, gradient, smooth_part(iterate), iterate, dead))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _smooth_step(
    optimizer: optax.GradientTransformation, gradient: PyTree, part: Smooth, iterate: Iterate, dead: PyTree
) -> Smooth:
    """The smooth part of the next iterate; `iterate` lends its counters and keys alone."""
    return smooth_part(descend(optimizer, with_smooth_part(iterate, part), gradient))


@_smooth_step.defjvp
def _smooth_step_jvp(
    optimizer: optax.GradientTransformation, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Smooth, Smooth]:
    gradient, part, iterate, dead = primals
    moved_gradient, moved, _, _ = tangents
    nudged = jax.tree.map(lambda g, dead: jnp.where(dead, _smallest(g), g), gradient, dead)

    def update(
        gradient: PyTree, inner: PyTree, moments: tuple[Array, ...]
    ) -> tuple[PyTree, tuple[Array, ...]]:
        state = with_smooth_part(iterate, Smooth(inner, moments)).optimizer
        updates, state = optax.with_extra_args_support(optimizer).update(gradient, state, inner)
        return updates, smooth_part(Iterate(inner, state)).moments

    _, (by_gradient, moments) = jax.jvp(
        lambda gradient, moments: update(gradient, part.inner, moments),
        (nudged, part.moments),
        (_without(moved_gradient, dead), moved.moments),
    )
    # Apart from the above, so that decoupled weight decay still acts on dead entries.
    _, (by_inner, moments_by_inner) = jax.jvp(
        lambda inner: update(nudged, inner, part.moments), (part.inner,), (moved.inner,)
    )
    inner = jax.tree.map(
        lambda own, left, right: own + (left + right).astype(own.dtype),
        moved.inner,
        _without(by_gradient, dead),
        by_inner,
    )
    moved_part = Smooth(inner, optax.tree.add(moments, moments_by_inner))
    return _smooth_step(optimizer, gradient, part, iterate, dead), moved_part


def has_derivative(optimizer: optax.GradientTransformation, inner: PyTree) -> bool:
    """Whether the update's vjp is not zero everywhere, tried on a generic gradient."""
    # Only shapes are read, so that the question may be asked while a program is traced.
    with jax.ensure_compile_time_eval():
        like = jax.tree.map(lambda x: jnp.ones(jnp.shape(x), jnp.result_type(x)), inner)
        generic = optax.tree.random_like(jax.random.key(0), like, jax.random.normal)
        state = optimizer.update(generic, optimizer.init(like), like)[1]
        updates, pull_back = jax.vjp(
            lambda g: optimizer.update(g, state, like)[0], optax.tree.scale(0.5, generic)
        )
        return bool(norm(pull_back(jax.tree.map(jnp.ones_like, updates))[0]) > 0)


def _smallest(gradient: Array) -> Array:
    wide = jnp.promote_types(gradient.dtype, jnp.float32)
    # Clipping and (1 - decay) may make the square 1e14 times smaller before it must still be a normal number.
    return jnp.asarray(1e7 * jnp.sqrt(jnp.finfo(wide).tiny), gradient.dtype)


def _without(vector: PyTree, dead: PyTree) -> PyTree:
    return jax.tree.map(lambda v, dead: jnp.where(dead, jnp.zeros_like(v), v), vector, dead)


def _is_smooth(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
