"""The dense rule: the reference that every other is measured against."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel.core.curvature import HESSIAN, Curvature, inverted, relative
from bilevel.core.hypergradient import Adjoint, Diagnostics, Direction, Levels, Point
from bilevel.core.tree import PyTree, norm, size, widened


def dense(curvature: Curvature = HESSIAN, limit: int = 4096) -> Adjoint:
    """q = (H + damping I)^-1 grad_inner upper from the matrix itself.

    One product a column and an eigendecomposition, so that the smallest eigenvalue is known and an indefinite matrix
    is inverted all the same. Eigenvectors without curvature, as far as arithmetic can tell, are left out, and what
    they miss stands in the residual. For heads, toys, and checks.

    Args:
        curvature: which matrix.
        limit: most inner variables that it accepts: memory grows with their square, time with their cube.
    """

    def init(levels: Levels, inner: PyTree) -> tuple[()]:
        curvature.check(levels)
        if size(inner) > limit:
            raise ValueError(
                f"dense: {size(inner):,} inner variables are more than {limit:,}; take conjugate_gradient"
            )
        return ()

    def solve(levels: Levels, point: Point, upper_gradient: PyTree, state: PyTree) -> Direction:
        product = curvature.product(levels, point)
        target, unravel = ravel_pytree(widened(upper_gradient))
        columns = jax.lax.map(
            lambda column: ravel_pytree(product(unravel(column)))[0], jnp.eye(target.size, dtype=target.dtype)
        )
        values, vectors = jnp.linalg.eigh(0.5 * (columns + columns.T))
        damping = curvature.damping_below(jnp.max(jnp.abs(values)))
        q = vectors @ (inverted(values + damping) * (vectors.T @ target))
        missed = target - (columns @ q + damping * q)
        diagnostics = Diagnostics(
            residual=relative(norm(missed), norm(target)), curvature=values[0] + damping, damping=damping
        )
        return Direction(unravel(q), (), diagnostics)

    return Adjoint(init, solve)
