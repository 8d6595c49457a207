"""Vector-space operations on pytrees that accumulate in float32, whatever the leaves are.

`optax.tree` provides the rest (`add`, `scale`, `zeros_like`, `where`, ...); these differ because a bf16 model's
inner products and norms must not be summed in bf16.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

PyTree = Any


def vdot(left: PyTree, right: PyTree) -> Float[Array, ""]:
    """The inner product of two trees of the same structure, accumulated in at least float32."""

    def leaf(x: Array, y: Array) -> Array:
        dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
        return jnp.sum(x.astype(dtype) * y.astype(dtype))

    return sum(jax.tree.leaves(jax.tree.map(leaf, left, right)), start=jnp.zeros((), jnp.float32))


def norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of all entries of a tree, accumulated in at least float32."""
    return jnp.sqrt(vdot(tree, tree))


def widened(tree: PyTree) -> PyTree:
    """The tree with floating-point leaves in at least float32: what linear solvers compute in."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)


def add_scaled(tree: PyTree, factor: Array | float, other: PyTree) -> PyTree:
    """The sum tree + factor * other in the first tree's dtypes, whatever the factor's is."""
    return jax.tree.map(lambda x, y: (x + factor * y).astype(jnp.result_type(x)), tree, other)


def size(tree: PyTree) -> int:
    """The number of entries of all leaves."""
    return sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no floating-point entry of the tree is NaN or infinite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.array(True)
