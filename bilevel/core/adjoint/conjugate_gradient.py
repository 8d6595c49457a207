"""Conjugate gradients: the implicit direction for a lower level that is solved and curves upwards."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from bilevel.core.curvature import HESSIAN, Curvature, Product, damped, relative, rounding_of, unit
from bilevel.core.hypergradient import Adjoint, Diagnostics, Direction, Levels, Point
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, add_scaled, norm, vdot, widened


class _Progress(NamedTuple):
    """Of curvatures p.Ap / p.p: the smallest that was met, the smallest of a step, the largest |Ap| / |p|."""

    solution: PyTree
    residual: PyTree
    direction: PyTree
    squared: Float[Array, ""]
    left_out: Float[Array, ""]
    smallest: Float[Array, ""]
    divided_by: Float[Array, ""]
    largest: Float[Array, ""]
    ended: Bool[Array, ""]
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

    A direction p with p.(H + damping I)p < 0 ends the iteration: no step along it would lead to the solution. What has
    been found up to there is returned (nothing, if the first direction is such), the diagnostics hold the negative
    curvature and the residual, and the remedy is damping or `gauss_newton`. A direction that is flat as far as
    arithmetic can tell, at a curvature within a few roundings of the largest that was met, is what no q can reach:
    parameters that the batch does not touch. It is left out of the system, and the iteration goes on in the rest; the
    residual says what was left out. Where a later direction shows that an earlier step was along a flat one, the answer
    means nothing: its residual is infinite, and the solver does not apply it.

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
        # A step may have been taken before anything said how flat its direction was.
        lost = found.divided_by <= rounding_of(found.largest)
        residual = jnp.where(lost, jnp.inf, jnp.sqrt(found.squared + found.left_out))
        diagnostics = Diagnostics(residual=residual, curvature=found.smallest, damping=damping)
        return Direction(q, q if warm_start else (), diagnostics)

    return Adjoint(init, solve)


def _solve(product: Product, start: PyTree, residual: PyTree, iterations: int, tolerance: float) -> _Progress:
    squared = vdot(residual, residual)
    # Below rounding a further step divides noise by noise.
    enough = jnp.maximum(tolerance, jnp.finfo(squared.dtype).eps) ** 2

    def unfinished(now: _Progress) -> Array:
        return (now.iteration < iterations) & (now.squared > enough) & ~now.ended

    def iterate(now: _Progress) -> _Progress:
        image = product(now.direction)
        length = vdot(now.direction, now.direction)
        bent = relative(vdot(now.direction, image), length)
        largest = jnp.maximum(now.largest, relative(norm(image), jnp.sqrt(length)))
        # NaN is neither: it goes on into the residual, which says so.
        flat, negative = jnp.abs(bent) <= rounding_of(largest), bent < -rounding_of(largest)
        idle = flat | negative
        step = jnp.where(idle, 0.0, now.squared / jnp.where(idle, 1.0, bent * length))
        # In a flat direction the solution has no part that means anything, and the target none that can be reached.
        part = jnp.where(flat, relative(vdot(now.direction, now.solution), length), 0.0)
        residual = add_scaled(now.residual, part - step, image)
        missed = jnp.where(flat, relative(vdot(now.direction, residual), length), 0.0)
        residual = add_scaled(residual, -missed, now.direction)
        squared = vdot(residual, residual)
        return _Progress(
            solution=add_scaled(now.solution, step - part, now.direction),
            residual=residual,
            direction=add_scaled(residual, jnp.where(flat, 0.0, squared / now.squared), now.direction),
            squared=squared,
            left_out=now.left_out + missed**2 * length,
            smallest=jnp.minimum(now.smallest, bent),
            divided_by=jnp.where(idle, now.divided_by, jnp.minimum(now.divided_by, bent)),
            largest=largest,
            ended=negative,
            iteration=now.iteration + 1,
        )

    unknown = jnp.full_like(squared, jnp.inf)
    begun = _Progress(
        solution=start,
        residual=residual,
        direction=residual,
        squared=squared,
        left_out=jnp.zeros_like(squared),
        smallest=unknown,
        divided_by=unknown,
        largest=jnp.zeros_like(squared),
        ended=jnp.zeros((), bool),
        iteration=jnp.zeros((), jnp.int32),
    )
    return jax.lax.while_loop(unfinished, iterate, begun)
