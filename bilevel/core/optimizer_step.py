"""An optimizer step that can be differentiated wherever training can be."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core.lower_steps import Iterate, descend
from bilevel.core.tree import PyTree, is_smooth, norm


class Smooth(NamedTuple):
    """The part of an iterate that has derivatives: inner variables, and the floating-point leaves of the state."""

    inner: PyTree
    moments: tuple[Array, ...]


def smooth_part(iterate: Iterate) -> Smooth:
    """What can carry a cotangent through a step."""
    return Smooth(
        iterate.inner, tuple(leaf for leaf in jax.tree.leaves(iterate.optimizer) if is_smooth(leaf))
    )


def with_smooth_part(iterate: Iterate, part: Smooth) -> Iterate:
    """The iterate with its smooth part replaced; counters and keys stay."""
    moments = iter(part.moments)
    return Iterate(
        part.inner,
        jax.tree.map(lambda leaf: next(moments) if is_smooth(leaf) else leaf, iterate.optimizer),
    )


def differentiable_step(
    optimizer: optax.GradientTransformation, gradient: PyTree, iterate: Iterate
) -> Iterate:
    """Takes an optimizer step whose derivative is finite at gradients of exactly zero too.

    Entries without a gradient are the embeddings of tokens that no batch holds: Adam's second moment of theirs is
    zero, where its root has no derivative, and one NaN there would spread over all entries through clipping by the
    global norm. There the step is linearised a hair away from zero. Where it is so steep even there that rounding
    would rule the result, what moves the gradient is dropped, in both directions of differentiation; gradient
    descent, which is as steep everywhere, keeps all.

    Args:
        optimizer: any optax chain.
        gradient: what the optimizer is given.
        iterate: where the step begins.
    """
    after = descend(optimizer, iterate, gradient)
    return with_smooth_part(after, _smooth_step(optimizer, gradient, smooth_part(iterate), iterate))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _smooth_step(
    optimizer: optax.GradientTransformation, gradient: PyTree, part: Smooth, iterate: Iterate
) -> Smooth:
    """The smooth part of the next iterate; `iterate` lends its counters and keys alone."""
    return smooth_part(descend(optimizer, with_smooth_part(iterate, part), gradient))


@_smooth_step.defjvp
def _smooth_step_jvp(
    optimizer: optax.GradientTransformation, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Smooth, Smooth]:
    gradient, part, iterate = primals
    moved_gradient, moved, _ = tangents
    silent = jax.tree.map(lambda g: jnp.abs(g) <= _smallest(g), gradient)
    nudged = jax.tree.map(lambda g, silent: jnp.where(silent, _smallest(g), g), gradient, silent)

    def update(
        gradient: PyTree, inner: PyTree, moments: tuple[Array, ...]
    ) -> tuple[PyTree, tuple[Array, ...]]:
        state = with_smooth_part(iterate, Smooth(inner, moments)).optimizer
        updates, state = optax.with_extra_args_support(optimizer).update(gradient, state, inner)
        return updates, smooth_part(Iterate(inner, state)).moments

    def by_gradient(moved_gradient: PyTree, moved_moments: tuple[Array, ...]) -> tuple[PyTree, Any]:
        return jax.jvp(
            lambda gradient, moments: update(gradient, part.inner, moments),
            (nudged, part.moments),
            (moved_gradient, moved_moments),
        )[1]

    slopes, _ = by_gradient(jax.tree.map(jnp.ones_like, nudged), jax.tree.map(jnp.zeros_like, part.moments))
    steep = _steep(jax.lax.stop_gradient(slopes), silent)
    updates, moments = by_gradient(_without(moved_gradient, steep), moved.moments)
    # Apart from the above, so that decoupled weight decay still acts on steep entries.
    _, (by_inner, moments_by_inner) = jax.jvp(
        lambda inner: update(nudged, inner, part.moments), (part.inner,), (moved.inner,)
    )
    inner = jax.tree.map(
        lambda own, left, right: own + (left + right).astype(own.dtype),
        moved.inner,
        _without(updates, steep),
        by_inner,
    )
    moved_part = Smooth(inner, optax.tree.add(moments, moments_by_inner))
    return _smooth_step(optimizer, gradient, part, iterate), moved_part


def _steep(slopes: PyTree, silent: PyTree) -> PyTree:
    """Which silent entries answer to their gradient over a thousand times as much as any other, or not finitely."""
    slopes = jax.tree.map(
        lambda slope: jnp.abs(slope).astype(jnp.promote_types(slope.dtype, jnp.float32)), slopes
    )
    others = [
        jnp.max(jnp.where(silent, -jnp.inf, slope), initial=-jnp.inf)
        for slope, silent in zip(jax.tree.leaves(slopes), jax.tree.leaves(silent), strict=True)
    ]
    steepest = jnp.max(jnp.stack(others))
    bound = jnp.where(jnp.isneginf(steepest), jnp.inf, 1e3 * steepest)
    return jax.tree.map(
        lambda slope, silent: silent & ~(jnp.isfinite(slope) & (slope <= bound.astype(slope.dtype))),
        slopes,
        silent,
    )


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


def _without(vector: PyTree, left_out: PyTree) -> PyTree:
    return jax.tree.map(lambda v, out: jnp.where(out, jnp.zeros_like(v), v), vector, left_out)
