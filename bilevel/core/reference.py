"""Hypergradients to compare with: by the implicit function theorem with a dense solve, or by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel.core.curvature import inverted
from bilevel.core.problem import Batch, Problem
from bilevel.core.tree import PyTree, add_scaled, norm

_NEWTON_STEPS = 50
_HALVINGS = 20
_SMALLER_STEPS = 6
_WELL_KNOWN = 0.01
"""Uncertainty of slopes below which smaller steps are not tried."""


class Reference(NamedTuple):
    """What is known of the true hypergradient: its inner products with some directions.

    Attributes:
        words: how it was found.
        directions: trees like the outer variables, stacked; None stands for all coordinates.
        slopes: the hypergradient's inner products with them, or the hypergradient, flat.
        uncertainty: relative error of the slopes themselves.
        stationarity: norm of the lower gradient, relative to the upper one's, where the lower level was left.
        curvature: smallest eigenvalue there; None where it was not computed.
        at_point: the same formula at the inner variables that were given, flat; None where it was not computed.
    """

    words: str
    directions: PyTree | None
    slopes: np.ndarray
    uncertainty: float
    stationarity: float
    curvature: float | None = None
    at_point: np.ndarray | None = None


def dense_reference(
    problem: Problem, outer: PyTree, inner: PyTree, lower_batch: Batch, upper_batch: Batch
) -> Reference:
    """Solves the lower level by Newton's method and differentiates through its optimum with the matrix itself.

    Newton's steps take absolute eigenvalues and are halved until the loss falls, so that they lead to a minimum and
    to no saddle.
    """
    flat_outer, unravel_outer = ravel_pytree(outer)
    flat_inner, unravel = ravel_pytree(inner)

    def lower(outer: Array, inner: Array) -> Array:
        return problem.lower(unravel_outer(outer), unravel(inner), lower_batch).value

    def upper(outer: Array, inner: Array) -> Array:
        return problem.upper(unravel_outer(outer), unravel(inner), upper_batch).value

    value, gradient = jax.jit(lower), jax.jit(jax.grad(lower, 1))
    hessian = jax.jit(jax.jacfwd(jax.grad(lower, 1), 1))

    def implicit(inner: Array) -> tuple[np.ndarray, float, float]:
        values, vectors = np.linalg.eigh(hessian(flat_outer, inner))
        above_outer, above_inner = jax.grad(upper, (0, 1))(flat_outer, inner)
        q = jnp.asarray(vectors @ (inverted(jnp.asarray(values)) * (vectors.T @ above_inner)))
        cross = jax.grad(lambda outer: jnp.vdot(jax.grad(lower, 1)(outer, inner), q))(flat_outer)
        short = float(norm(gradient(flat_outer, inner)) / norm(above_inner))
        return np.asarray(above_outer - cross), float(values[0]), short

    at_point, _, _ = implicit(flat_inner)
    optimum = _minimum(lambda w: value(flat_outer, w), lambda w: gradient(flat_outer, w),
                       lambda w: hessian(flat_outer, w), flat_inner)  # fmt: skip
    slopes, smallest, short = implicit(optimum)
    return Reference("the dense implicit formula", None, slopes, 0.0, short, smallest, at_point)


def _minimum(
    value: Callable[[Array], Array],
    gradient: Callable[[Array], Array],
    hessian: Callable[[Array], Array],
    start: Float[Array, " inner"],
) -> Float[Array, " inner"]:
    inner, eps = start, float(jnp.finfo(start.dtype).eps)
    for _ in range(_NEWTON_STEPS):
        slope = np.asarray(gradient(inner))
        values, vectors = np.linalg.eigh(hessian(inner))
        sizes = np.maximum(np.abs(values), eps * np.abs(values).max())
        step = vectors @ ((vectors.T @ slope) / sizes)
        if slope @ step <= eps * max(1.0, abs(float(value(inner)))) * eps:
            break
        before, length = float(value(inner)), 1.0
        # Near the optimum the loss no longer resolves the step that its gradient still does: full steps are taken.
        while length > 0.5**_HALVINGS and float(value(inner - length * step)) > before + 4 * eps * abs(
            before
        ):
            length /= 2
        inner = inner - length * step
    return inner


def finite_difference_reference(
    value: Callable[[PyTree], tuple[Array, Array]],
    what: str,
    outer: PyTree,
    directions: int,
    key: Array,
    step: float | None = None,
) -> Reference:
    """Central differences of the value function along random directions, or along all coordinates if these are few.

    Each slope is taken at two steps and extrapolated (Richardson); what the two differ by is the uncertainty. While
    that is large and falls, the steps are halved: a network's entries are smaller than row logits.

    Args:
        value: outer -> (upper loss after the lower level was solved or continued, stationarity there).
        what: `value` goes through, in words.
        outer: where.
        directions: how many, with independent normal entries.
        key: of the directions.
        step: of the first differences; by default what balances rounding and truncation for entries of size one.
    """
    flat, unravel = ravel_pytree(outer)
    eps = float(jnp.finfo(flat.dtype).eps)
    step = eps ** (1 / 5) if step is None else step
    every = directions >= flat.size
    moves = (
        jnp.eye(flat.size, dtype=flat.dtype)
        if every
        else jax.random.normal(key, (directions, flat.size), flat.dtype)
    )
    stacked = jax.vmap(unravel)(moves)
    evaluate = jax.jit(value)

    def slope(direction: PyTree, step: float) -> float:
        up, down = (float(evaluate(add_scaled(outer, s, direction))[0]) for s in (step, -step))
        return (up - down) / (2 * step)

    def slopes_at(step: float) -> np.ndarray:
        return np.array([slope(jax.tree.map(lambda x, i=i: x[i], stacked), step) for i in range(len(moves))])

    coarse, fine = slopes_at(2 * step), slopes_at(step)
    slopes, uncertainty = _extrapolated(coarse, fine)
    for _ in range(_SMALLER_STEPS):
        if uncertainty <= _WELL_KNOWN:
            break
        step /= 2
        coarse, fine = fine, slopes_at(step)
        halved = _extrapolated(coarse, fine)
        if not halved[1] < uncertainty:
            break
        slopes, uncertainty = halved
    where = "all coordinates" if every else f"{directions} random directions"
    words = f"finite differences through {what} along {where}"
    return Reference(words, None if every else stacked, slopes, uncertainty, float(evaluate(outer)[1]))


def _extrapolated(coarse: np.ndarray, fine: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes from those of steps 2h and h, and their relative error as far as these tell."""
    slopes = fine + (fine - coarse) / 3
    length = np.linalg.norm(slopes)
    return slopes, float(np.linalg.norm(slopes - fine) / length) if length > 0 else np.inf


def value_at_optimum(
    problem: Problem, inner: PyTree, lower_batch: Batch, upper_batch: Batch, steps: int
) -> Callable[[PyTree], tuple[Array, Array]]:
    """The function outer -> (upper loss, stationarity) after the lower level was minimised from `inner` by L-BFGS."""
    optimizer = optax.lbfgs()

    def value(outer: PyTree) -> tuple[Array, Array]:
        def lower(inner: PyTree) -> Array:
            return problem.lower(outer, inner, lower_batch).value

        value_and_gradient = optax.value_and_grad_from_state(lower)

        def move(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
            inner, state = carry
            loss, slope = value_and_gradient(inner, state=state)
            updates, state = optimizer.update(slope, state, inner, value=loss, grad=slope, value_fn=lower)
            return (optax.apply_updates(inner, updates), state), None

        (solved, _), _ = jax.lax.scan(move, (inner, optimizer.init(inner)), None, length=steps)
        return _upper_and_stationarity(problem, outer, solved, lower_batch, upper_batch)

    return value


def value_after_steps(
    problem: Problem,
    inner: PyTree,
    optimizer: optax.GradientTransformation,
    optimizer_state: PyTree,
    lower_batch: Batch,
    upper_batch: Batch,
    steps: int,
) -> Callable[[PyTree], tuple[Array, Array]]:
    """The function outer -> (upper loss, stationarity) after some steps of the inner optimizer on one lower batch."""

    def value(outer: PyTree) -> tuple[Array, Array]:
        def move(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], None]:
            inner, state = carry
            slope = jax.grad(lambda inner: problem.lower(outer, inner, lower_batch).value)(inner)
            updates, state = optimizer.update(slope, state, inner)
            return (optax.apply_updates(inner, updates), state), None

        (moved, _), _ = jax.lax.scan(move, (inner, optimizer_state), None, length=steps)
        return _upper_and_stationarity(problem, outer, moved, lower_batch, upper_batch)

    return value


def _upper_and_stationarity(
    problem: Problem, outer: PyTree, inner: PyTree, lower_batch: Batch, upper_batch: Batch
) -> tuple[Array, Array]:
    below = jax.grad(lambda inner: problem.lower(outer, inner, lower_batch).value)(inner)
    upper, above = jax.value_and_grad(lambda inner: problem.upper(outer, inner, upper_batch).value)(inner)
    return upper, norm(below) / norm(above)
