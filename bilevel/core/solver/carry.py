"""Tables follow their rows when rows come and go: outer variables, memory and the outer optimizer's state."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel.core.lower_steps import Iterate
from bilevel.core.problem import CameFrom, Sizes, Weighting
from bilevel.core.solver.solver import SolverState
from bilevel.core.tables import named, sizes_of
from bilevel.core.tree import PyTree

Sources = Mapping[str, np.ndarray]
"""By index name, for each new row the old one, -1 for none; names whose rows stay where they are stand not in it."""


def carried(
    weighting: Weighting,
    optimizer: optax.GradientTransformation,
    state: SolverState,
    sizes: Sizes,
    came_from: CameFrom,
) -> SolverState:
    """The state after rows came and went.

    Tables are centred, gathered along their first axis, and filled up from `Weighting.init` with a key of its own;
    leaves of the outer optimizer's state whose first axis counts the same rows follow likewise, and are filled up from
    the optimizer's `init`. Rows that stay where they are keep their tables bit for bit.

    Args:
        weighting: whose tables.
        optimizer: of the outer variables.
        state: before.
        sizes: how many rows there are now.
        came_from: for each index that a table is by, the old row of each new one.

    Raises:
        ValueError: for sizes or old rows of an index that are missing or do not fit together, sizes that the weighting
            refuses, or an optimizer state in which rows cannot be told apart.
    """
    old = sizes_of(weighting, state.outer.inner, state.memory)
    sources = {
        name: source
        for name, length in old.items()
        if (source := _source(name, length, sizes, came_from)) is not None
    }
    expected = jax.eval_shape(
        lambda key: weighting.init(key, sizes), state.key
    )  # refuses tables that do not fit
    if not sources:
        return state
    outer_names, memory_names = map(named, weighting.tables, (state.outer.inner, state.memory))
    optimizer_names = _followers(optimizer, state.outer, outer_names, sources)
    anew = any(np.any(source < 0) for source in sources.values())

    key = jax.random.fold_in(state.key, zlib.crc32(b"carry"))
    new_outer, new_memory = weighting.init(key, sizes) if anew else (state.outer.inner, state.memory)
    # A table whose rows stay is not centred: it stays bit for bit.
    centred = jax.tree.map(
        lambda name, plain, shifted: shifted if name in sources else plain,
        outer_names,
        state.outer.inner,
        weighting.centred(state.outer.inner),
    )
    outer = _gathered(outer_names, centred, new_outer, sources)
    memory = _gathered(memory_names, state.memory, new_memory, sources)
    _check_shapes((outer, memory), expected)
    fresh = optimizer.init(outer) if anew else state.outer.optimizer
    moments = _gathered(optimizer_names, state.outer.optimizer, fresh, sources)
    return state.replace(outer=Iterate(outer, moments), memory=memory)


def _source(name: str, length: int, sizes: Sizes, came_from: CameFrom) -> np.ndarray | None:
    """The old row of each new one, checked; None where all rows stay where they are."""
    missing = [what for what, given in (("sizes", sizes), ("came_from", came_from)) if name not in given]
    if missing:
        raise ValueError(
            f"carry: there is a table by {name!r}, of which {' and '.join(missing)} says nothing"
        )
    source = np.asarray(came_from[name])
    if source.shape != (sizes[name],) or not np.issubdtype(source.dtype, np.integer):
        raise ValueError(
            f"carry: came_from[{name!r}] must be {sizes[name]} integers, as sizes says, not "
            f"{source.dtype}{list(source.shape)}"
        )
    if source.size and not (source.min() >= -1 and source.max() < length):
        raise ValueError(
            f"carry: came_from[{name!r}] must be in [-1, {length}), not {source.min()} to {source.max()}"
        )
    return None if np.array_equal(source, np.arange(length)) else source


def _followers(
    optimizer: optax.GradientTransformation, outer: Iterate, names: PyTree, sources: Sources
) -> PyTree:
    """Of each leaf of the optimizer's state the index that its first axis counts: it grows where tables grow."""

    def shapes(longer: str) -> list[tuple[int, ...]]:
        def like(leaf: jax.Array, name: str) -> jax.ShapeDtypeStruct:
            shape = jnp.shape(leaf)
            if name and name == longer:
                shape = (shape[0] + 1, *shape[1:])
            return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

        made = jax.eval_shape(optimizer.init, jax.tree.map(like, outer.inner, names))
        return [leaf.shape for leaf in jax.tree.leaves(made)]

    leaves, structure = jax.tree.flatten(outer.optimizer)
    plain, found = shapes(""), [""] * len(leaves)
    for name in sources:
        for place, (before, after) in enumerate(zip(plain, shapes(name), strict=True)):
            if after == before:
                continue
            if after != (before[0] + 1, *before[1:]):
                raise ValueError(
                    f"carry: a leaf of the outer optimizer's state, {list(before)}, mixes rows of {name!r}: take a "
                    "rule that keeps a state for each row"
                )
            found[place] = name
    return jax.tree.unflatten(structure, found)


def _gathered(names: PyTree, tree: PyTree, fresh: PyTree, sources: Sources) -> PyTree:
    def leaf(name: str, old: jax.Array, new: jax.Array) -> jax.Array:
        if name not in sources:
            return old
        source = sources[name]
        if old.shape[0] == 0:
            return new
        kept = jnp.take(old, jnp.asarray(np.maximum(source, 0)), axis=0)
        if np.all(source >= 0):
            return kept
        known = jnp.asarray(source >= 0).reshape(-1, *[1] * (kept.ndim - 1))
        return jnp.where(known, kept, new.astype(kept.dtype))

    return jax.tree.map(leaf, names, tree, fresh)


def _check_shapes(found: PyTree, expected: PyTree) -> None:
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"carry: tables do not fit the sizes: {shapes[0]} where the weighting's init gives {shapes[1]}"
        )
