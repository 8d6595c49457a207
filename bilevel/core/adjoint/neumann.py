"""The Neumann series: gradient descent on the linear system, which cannot break down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core.curvature import HESSIAN, Curvature, damped, largest_curvature, relative
from bilevel.core.hypergradient import Adjoint, Diagnostics, Direction, Levels, Point
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, add_scaled, norm, vdot, widened


def neumann(
    iterations: int = 20,
    curvature: Curvature = HESSIAN,
    step_size: float | None = None,
    warm_start: bool = False,
) -> Adjoint:
    """q = step * sum over k < K of (I - step (H + damping I))^k grad_inner upper, one matrix product a term.

    Tends to (H + damping I)^-1 grad_inner upper when 0 < step < 2 / (largest eigenvalue) and all eigenvalues are
    positive, with an error of (1 - step * smallest eigenvalue)^K. Stopped early it equals the unrolled derivative of
    K gradient steps from the optimum. On an indefinite matrix it grows without bound: the residual, which comes free
    of charge, then exceeds one.

    Args:
        iterations: terms K.
        curvature: which matrix.
        step_size: of the series; None for 1 / (estimate of the largest eigenvalue), by power iteration.
        warm_start: whether to begin at the last step's q, which costs one more product and a vector of memory.

    References:
        Lorraine, Vicol & Duvenaud, Optimizing Millions of Hyperparameters by Implicit Differentiation, AISTATS 2020.
    """
    check_ranges(
        {"iterations": iterations, "step_size": step_size},
        ("iterations", iterations >= 1, "at least 1"),
        ("step_size", step_size is None or step_size > 0, "positive"),
    )

    def init(levels: Levels, inner: PyTree) -> PyTree:
        curvature.check(levels)
        return optax.tree.zeros_like(widened(inner)) if warm_start else ()

    def solve(levels: Levels, point: Point, upper_gradient: PyTree, state: PyTree) -> Direction:
        plain = curvature.product(levels, point)
        key = jax.random.fold_in(point.key, 0)
        if step_size is None:
            largest = largest_curvature(plain, upper_gradient, key, curvature.power_iterations)
            damping = curvature.damping_below(largest)
            step = 1.0 / (largest + damping)
        else:
            damping = curvature.damping_at(plain, upper_gradient, key)
            step = jnp.asarray(step_size)
        product = damped(plain, damping)
        target = widened(upper_gradient)
        if warm_start:
            begun = state, add_scaled(target, -1.0, product(state))
        else:
            begun = optax.tree.zeros_like(target), target

        def add_term(sums: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], Array]:
            q, residual = sums
            image = product(residual)
            squared = vdot(residual, residual)
            bent = jnp.where(
                squared > 0, vdot(residual, image) / jnp.where(squared > 0, squared, 1.0), jnp.inf
            )
            return (add_scaled(q, step, residual), add_scaled(residual, -step, image)), bent

        (q, residual), bent = jax.lax.scan(add_term, begun, None, length=iterations)
        diagnostics = Diagnostics(
            residual=relative(norm(residual), norm(upper_gradient)), curvature=jnp.min(bent), damping=damping
        )
        return Direction(q, q if warm_start else (), diagnostics)

    return Adjoint(init, solve)
