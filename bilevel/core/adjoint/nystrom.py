"""The Nystrom rule: the inverse of a random low-rank approximation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bilevel.core.curvature import DAMPED_HESSIAN, Curvature, damped, relative
from bilevel.core.hypergradient import Adjoint, Diagnostics, Direction, Levels, Point
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, add_scaled, norm, size, vdot, widened

_STACKED_ROUNDING = 16


def nystrom(rank: int = 10, curvature: Curvature = DAMPED_HESSIAN) -> Adjoint:
    """q = (H_r + damping I)^-1 grad_inner upper with a randomised approximation H_r of H of rank r.

    An orthonormal Gaussian sketch S of r directions costs r matrix products, all at once if memory allows, and

        H_r = (H S) (S^T H S)^-1 (H S)^T,      inverted by the Woodbury identity in r x r matrices.

    H is shifted by a few roundings of its norm before it is factorised and back after, so that float32 serves.
    Directions in which the sketch is not positive are left out. What the sketch misses is divided by the damping
    alone: right when few eigenvalues stand out and the damping is at the level of the rest, otherwise far too long.

    Args:
        rank: sketched directions r; memory is 2 r vectors.
        curvature: which matrix; must be damped.

    References:
        Hataya & Yamada, Nystrom Method for Accurate and Scalable Implicit Differentiation, AISTATS 2023.
        Frangella, Tropp & Udell, Randomized Nystrom Preconditioning, SIAM J. Matrix Anal. Appl. 2023.
    """
    check_ranges({"rank": rank}, ("rank", rank >= 1, "at least 1"))
    if curvature.damping == 0 and curvature.relative_damping == 0:
        raise ValueError(
            "nystrom divides what its sketch misses by the damping: give damping or relative_damping"
        )

    def init(levels: Levels, inner: PyTree) -> tuple[()]:
        curvature.check(levels)
        if rank > size(inner):
            raise ValueError(f"nystrom: rank {rank} exceeds the {size(inner)} inner variables; lower it")
        return ()

    def solve(levels: Levels, point: Point, upper_gradient: PyTree, state: PyTree) -> Direction:
        product = curvature.product(levels, point)
        target = widened(upper_gradient)
        sketch = _orthonormal(_gaussian(jax.random.fold_in(point.key, 0), target, rank))
        vectors, values, smallest = _eigenpairs(sketch, jax.lax.map(product, sketch))
        damping = curvature.damping_below(jnp.max(values))
        inside = _products(vectors, target)
        q = add_scaled(
            optax.tree.scale(1.0 / damping, target),
            1.0,
            _combined(inside * (1.0 / (values + damping) - 1.0 / damping), vectors),
        )
        missed = add_scaled(target, -1.0, damped(product, damping)(q))
        diagnostics = Diagnostics(
            residual=relative(norm(missed), norm(target)), curvature=smallest + damping, damping=damping
        )
        return Direction(q, (), diagnostics)

    return Adjoint(init, solve)


def _eigenpairs(sketch: PyTree, images: PyTree) -> tuple[PyTree, Float[Array, " rank"], Float[Array, ""]]:
    """Eigenvectors (stacked) and eigenvalues of the approximation, and the smallest curvature in the sketch."""
    eps = jnp.finfo(jax.tree.leaves(sketch)[0].dtype).eps
    shift = _STACKED_ROUNDING * eps * norm(images)
    images = add_scaled(images, shift, sketch)
    core, rotation = jnp.linalg.eigh(_gram(sketch, images))
    kept = core > _STACKED_ROUNDING * eps * jnp.max(jnp.abs(core))
    inverse_root = jnp.where(kept, 1.0 / jnp.sqrt(jnp.where(kept, core, 1.0)), 0.0)
    factor = _rotated(inverse_root[:, None] * rotation.T, images)
    squares, turn = jnp.linalg.eigh(_gram(factor, factor))
    present = squares > eps * jnp.max(jnp.abs(squares))
    scales = jnp.where(present, 1.0 / jnp.sqrt(jnp.where(present, squares, 1.0)), 0.0)
    values = jnp.where(present, jnp.maximum(squares - shift, 0.0), 0.0)
    return _rotated(scales[:, None] * turn.T, factor), values, core[0] - shift


def _gaussian(key: Array, like: PyTree, rank: int) -> PyTree:
    stacked = jax.tree.map(lambda x: jnp.zeros((rank, *x.shape), x.dtype), like)
    return optax.tree.random_like(key, stacked, jax.random.normal)


def _orthonormal(stacked: PyTree) -> PyTree:
    """Rows that span the same space, by the Cholesky factor of their products."""
    factor = jnp.linalg.cholesky(_gram(stacked, stacked))
    inverse = jax.scipy.linalg.solve_triangular(
        factor, jnp.eye(factor.shape[0], dtype=factor.dtype), lower=True
    )
    return _rotated(inverse, stacked)


def _gram(left: PyTree, right: PyTree) -> Float[Array, "rank rank"]:
    matrix = jax.vmap(lambda x: jax.vmap(lambda y: vdot(x, y))(right))(left)
    return 0.5 * (matrix + matrix.T)


def _products(stacked: PyTree, vector: PyTree) -> Float[Array, " rank"]:
    return jax.vmap(lambda x: vdot(x, vector))(stacked)


def _combined(coefficients: Float[Array, " rank"], stacked: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.tensordot(coefficients.astype(x.dtype), x, 1), stacked)


def _rotated(matrix: Float[Array, "rank rank"], stacked: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.tensordot(matrix.astype(x.dtype), x, 1), stacked)
