"""Exact nearest neighbours by cosine, in blocks: all pairs are looked at and never held."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel.errors import InputError
from bilevel.layout import Layout

_QUERIES, _KEYS = 512, 8192
"""Rows of a block and rows that it is compared with at a time: 16 MiB of similarities."""
_GROUP = 64


class Neighbours(NamedTuple):
    """The nearest other rows of each row, nearest first, of equally near ones the first.

    Attributes:
        similarity: cosines, in [-1, 1].
        ids: row ids.
    """

    similarity: Float[np.ndarray, "rows k"]
    ids: Int[np.ndarray, "rows k"]


def neighbours(
    vectors: Float[Array | np.ndarray, "rows width"], k: int, layout: Layout | None = None
) -> Neighbours:
    """The k nearest other rows of each row by cosine similarity, exactly, in float32.

    Memory is that of the vectors, of O(rows k) results and of one block of similarities; time is that of the matrix
    product of all rows with all rows. A row is no neighbour of its own, but of its duplicates, at similarity 1. The
    cosine with a vector of zeros is 0.

    >>> found = neighbours(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], np.float32), k=1)
    >>> found.ids.ravel().tolist(), [f"{cosine:.3f}" for cosine in found.similarity.ravel()]
    ([2, 2, 0], ['0.707', '0.707', '0.707'])

    Args:
        vectors: a vector a row, such as `bilevel.curate.prompt_embeddings` gives.
        k: neighbours of a row.
        layout: devices that share the rows of each block, every one of which holds all vectors; by default the one
            that JAX would take.

    Raises:
        ValueError: `k` is not positive.
        InputError: no more than k rows, or a vector that is not finite.
    """
    rows = len(vectors)
    if k < 1:
        raise ValueError(f"k must be 1 or more, not {k}")
    if rows <= k:
        raise InputError(
            f"{rows} rows have no {k} neighbours each: take at most {max(rows - 1, 0)}, or more rows"
        )
    held = jnp.asarray(vectors, jnp.float32)
    if layout is not None:
        held = layout.replicate(held)
    scale = np.asarray(_inverse_norms(held))
    if not np.all(np.isfinite(scale)):
        raise InputError(
            f"the vector of row {int(np.argmin(np.isfinite(scale)))} is not finite: measure it again"
        )
    shares = 1 if layout is None else layout.shares
    size = -(-min(_QUERIES * shares, rows) // shares) * shares
    similarity, index = np.empty((rows, k), np.float32), np.empty((rows, k), np.int32)
    for start in range(0, rows, size):
        # The last block ends with the last row: rows that two blocks hold are found twice, alike.
        ids = np.minimum(np.arange(start, start + size), rows - 1).astype(np.int32)
        placed = jnp.asarray(ids) if layout is None else layout.split({"ids": ids})["ids"]
        found = _nearest(held, jnp.asarray(scale), placed, k)
        found = jax.device_get(found) if layout is None else layout.gather(found)
        here = min(size, rows - start)
        similarity[start : start + here], index[start : start + here] = (part[:here] for part in found)
    return Neighbours(np.clip(similarity, -1.0, 1.0), index)


@jax.jit
def _inverse_norms(vectors: Float[Array, "rows width"]) -> Float[Array, " rows"]:
    # By the largest entry first: squares of large float32 numbers overflow.
    largest = jnp.max(jnp.abs(vectors), axis=1)
    safe = jnp.where(largest > 0, largest, 1.0)
    norms = safe * jnp.sqrt(jnp.sum(jnp.square(vectors / safe[:, None]), axis=1))
    return jnp.where(largest > 0, 1.0 / norms, jnp.where(largest == 0, 0.0, jnp.nan))


@partial(jax.jit, static_argnames="k")
def _nearest(
    vectors: Float[Array, "rows width"], scale: Float[Array, " rows"], ids: Int[Array, " block"], k: int
) -> tuple[Float[Array, "block k"], Int[Array, "block k"]]:
    """The neighbours of some rows, from one block of keys after the other."""
    rows = len(vectors)
    size = min(_KEYS, rows)
    queries = vectors[ids] * scale[ids][:, None]

    def look(best: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        # The last block, too, is a whole one: it begins earlier, and what an earlier one held is passed over.
        first = jnp.minimum(number * size, rows - size)
        keys = first + jnp.arange(size)
        block = jax.lax.dynamic_slice_in_dim(vectors, first, size)
        cosines = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST) * scale[keys]
        passed = (keys < number * size) | (keys == ids[:, None])
        values, places = _largest(jnp.where(passed, -jnp.inf, cosines), k)
        # Those found before have lower ids, and stand first among equals.
        together = (
            jnp.concatenate([best[0], values], axis=1),
            jnp.concatenate([best[1], first + places], axis=1),
        )
        kept, which = jax.lax.top_k(together[0], k)
        return (kept, jnp.take_along_axis(together[1], which, axis=1)), None

    nothing = jnp.full((len(ids), k), -jnp.inf), jnp.zeros((len(ids), k), jnp.int32)
    return jax.lax.scan(look, nothing, jnp.arange(-(-rows // size)))[0]


def _largest(
    values: Float[Array, "block keys"], k: int
) -> tuple[Float[Array, "block k"], Int[Array, "block k"]]:
    """The k largest of each line, of equal ones the first.

    They stand in the k groups of the largest maxima: a sort looks at few numbers, where `top_k` would sort them all.
    """
    keys = values.shape[1]
    groups = -(-keys // _GROUP)
    if groups <= k:
        values = jnp.pad(values, ((0, 0), (0, max(0, k - keys))), constant_values=-jnp.inf)
        found, places = jax.lax.top_k(values, k)
        return found, jnp.minimum(places, keys - 1)
    padded = jnp.pad(values, ((0, 0), (0, groups * _GROUP - keys)), constant_values=-jnp.inf)
    grouped = padded.reshape(len(values), groups, _GROUP)
    _, chosen = jax.lax.top_k(jnp.max(grouped, axis=2), k)
    chosen = jnp.sort(chosen, axis=1)
    members = jnp.take_along_axis(grouped, chosen[:, :, None], axis=1).reshape(len(values), -1)
    found, places = jax.lax.top_k(members, k)
    inside = jnp.take_along_axis(chosen, places // _GROUP, axis=1) * _GROUP + places % _GROUP
    return found, inside.astype(jnp.int32)
