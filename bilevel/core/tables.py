"""Leaves whose first axis counts rows (or questions, sources): which they are, and how long."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bilevel.core.problem import Sizes, Weighting
from bilevel.core.tree import PyTree


def named(tables: PyTree, tree: PyTree) -> PyTree:
    """For each leaf of a tree the index that its first axis counts, "" for none.

    Args:
        tables: a prefix of the tree, see `Weighting.tables`.
        tree: outer variables or memory.
    """
    return jax.tree.broadcast(tables, tree)


def sizes_of(weighting: Weighting, outer: PyTree, memory: PyTree = ()) -> Sizes:
    """The sizes that a weighting's variables were made for, as far as its tables tell.

    Args:
        weighting: whose variables.
        outer: its outer variables.
        memory: its memory; () where it is not at hand.

    Raises:
        ValueError: for tables of one index that differ in length.
    """
    sizes: dict[str, int] = {}
    for tables, tree in zip(weighting.tables, (outer, memory), strict=True):
        if not jax.tree.leaves(tree):
            continue
        names = jax.tree.leaves(named(tables, tree))
        for name, leaf in zip(names, jax.tree.leaves(tree), strict=True):
            if name and sizes.setdefault(name, jnp.shape(leaf)[0]) != jnp.shape(leaf)[0]:
                raise ValueError(f"tables of {name} differ in length: {sizes[name]} and {jnp.shape(leaf)[0]}")
    return sizes
