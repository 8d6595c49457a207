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


def is_smooth(leaf: Any) -> bool:
    """Whether a leaf has derivatives: floating-point numbers do, integers and keys do not."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def check_smooth(what: str, tree: PyTree) -> None:
    """Refuses a tree of variables with a leaf that no gradient can move.

    Args:
        what: the variables are, in words.
        tree: the variables.

    Raises:
        ValueError: for the first leaf that is no floating-point array; the message names it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_smooth(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "they"
            raise ValueError(
                f"{what}: {name} is {jnp.result_type(leaf)}, which no gradient moves: make it floating-point, or let "
                "the functions close over it or read it from the batch"
            )


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no floating-point entry of the tree is NaN or infinite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if is_smooth(leaf)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])) if leaves else jnp.array(True)
