"""Whose arrays are whose: what a step may be given for good must belong to nobody else."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bilevel.core.tree import PyTree


def apart(tree: PyTree, others: PyTree) -> PyTree:
    """A tree with arrays of its own: copies of those that others hold, or that it holds twice."""
    taken = _identities(others)

    def own(leaf: jax.Array) -> jax.Array:
        if id(leaf) in taken:
            return jnp.copy(leaf)
        taken.add(id(leaf))
        return leaf

    return jax.tree.map(own, tree)


def copied(tree: PyTree) -> PyTree:
    """Copies of all arrays: whoever made the tree may hold some of them, in a closure for one."""
    leaves, structure = jax.tree.flatten(tree)
    del tree
    for place, leaf in enumerate(leaves):
        # One after the other, so that at no time all of them are there twice.
        leaves[place] = leaf = jnp.copy(leaf)
    return jax.tree.unflatten(structure, leaves)


def free(tree: PyTree, others: PyTree) -> None:
    """Gives back the memory of a tree's arrays, whoever still refers to them; those that others hold stay."""
    held = _identities(others)
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and id(leaf) not in held and not leaf.is_deleted():
            leaf.delete()


def _identities(tree: PyTree) -> set[int]:
    return {id(leaf) for leaf in jax.tree.leaves(tree)}
