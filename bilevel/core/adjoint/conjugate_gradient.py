"""Conjugate gradients: the implicit direction for a lower level that is solved and curves upwards."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bilevel.core.curvature import HESSIAN, Curvature, Product, damped, unit
from bilevel.core.hypergradient import Adjoint, Diagnostics, Direction, Levels, Point
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, add_scaled, norm, vdot, widened


class _Progress(NamedTuple):
    solution: PyTree
    residual: PyTree
    direction: PyTree
    squared: Float[Array, ""]
    smallest: Float[Array, ""]
    iteration: Int[Array, ""]


def conjugate_gradient(
    iterations: int = 10,
    curvature: Curvature = HESSIAN,
    tolerance: float = 0.0,
    warm_start: bool = False,
) -> Adjoint:
    """q = (H + damping I)^-1 grad_inner upper by conjugate gradients, one matrix product an iteration.

    The implicit function theorem's direction at the optimum of the lower level, to which the inner variables must be
    near (`Diagnostics.stationarity` says how near). Vectors and inner products are in float32 or better whatever the
    parameters are.

    A direction p with p.(H + damping I)p <= 0 ends the iteration: no step along it would lead to the solution. What
    has been found up to there is returned (nothing, if the first direction is such), the diagnostics hold the
    negative curvature and the residual, and the remedy is damping or `gauss_newton`.

    Args:
        iterations: most products spent.
        curvature: which matrix.
        tolerance: relative residual at which to stop early.
        warm_start: whether to begin at the last step's q, which costs one more product and a vector of memory.

    References:
        Hestenes & Stiefel, Methods of Conjugate Gradients for Solving Linear Systems, 1952.
        Pedregosa, Hyperparameter Optimization with Approximate Gradient, ICML 2016.
    """
    check_ranges(
        {"iterations": iterations, "tolerance": tolerance},
        ("iterations", iterations >= 1, "at least 1"),
        ("tolerance", 0 <= tolerance < 1, "in [0, 1)"),
    )

    def init(levels: Levels, inner: PyTree) -> PyTree:
        curvature.check(levels)
        return optax.tree.zeros_like(widened(inner)) if warm_start else ()

    def solve(levels: Levels, point: Point, upper_gradient: PyTree, state: PyTree) -> Direction:
        plain = curvature.product(levels, point)
        damping = curvature.damping_at(plain, upper_gradient, jax.random.fold_in(point.key, 0))
        product = damped(plain, damping)
        # Solved for a right-hand side of length one, so that tiny gradients do not underflow when squared.
        length = norm(upper_gradient)
        target = unit(widened(upper_gradient), length)
        if warm_start:
            start = unit(state, length)
            residual = add_scaled(target, -1.0, product(start))
        else:
            start, residual = optax.tree.zeros_like(target), target
        found = _solve(product, start, residual, iterations, tolerance)
        q = optax.tree.scale(length, found.solution)
        diagnostics = Diagnostics(residual=jnp.sqrt(found.squared), curvature=found.smallest, damping=damping)
        return Direction(q, q if warm_start else (), diagnostics)

    return Adjoint(init, solve)


def _solve(product: Product, start: PyTree, residual: PyTree, iterations: int, tolerance: float) -> _Progress:
    squared = vdot(residual, residual)
    # Below rounding a further step divides noise by noise.
    enough = jnp.maximum(tolerance, jnp.finfo(squared.dtype).eps) ** 2

    def unfinished(now: _Progress) -> Array:
        return (now.iteration < iterations) & (now.squared > enough) & (now.smallest > 0)

    def iterate(now: _Progress) -> _Progress:
        image = product(now.direction)
        bent = vdot(now.direction, image)
        step = jnp.where(bent > 0, now.squared / jnp.where(bent > 0, bent, 1.0), 0.0)
        residual = add_scaled(now.residual, -step, image)
        squared = vdot(residual, residual)
        return _Progress(
            solution=add_scaled(now.solution, step, now.direction),
            residual=residual,
            direction=add_scaled(residual, squared / now.squared, now.direction),
            squared=squared,
            smallest=jnp.minimum(now.smallest, bent / vdot(now.direction, now.direction)),
            iteration=now.iteration + 1,
        )

    begun = _Progress(
        solution=start,
        residual=residual,
        direction=residual,
        squared=squared,
        smallest=jnp.full_like(squared, jnp.inf),
        iteration=jnp.zeros((), jnp.int32),
    )
    return jax.lax.while_loop(unfinished, iterate, begun)
