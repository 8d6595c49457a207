"""Attention one block of positions at a time, in plain array operations."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from models.attention.exact import Attend, Keys, Queries
from models.precision import accumulation_dtype

BLOCK = 256
"""Positions of a block: scores of 256 x 256 a head and sequence are held at a time."""


def blockwise(
    segments: Int[Array, "sequences positions"], window: int | None = None, block: int = BLOCK
) -> Attend:
    """Attention that holds the scores of two blocks at a time, in every derivative.

    Each block of queries passes over the blocks of keys with a running softmax: with m the largest score so far,
    the sums of exp(score - m) and of exp(score - m) * value. The result does not depend on m, so m needs no
    derivative. Both loops are rematerialised; blocks that no query of a block can see are passed over.

    References:
        Rabe and Staats, Self-attention Does Not Need O(n^2) Memory, 2021 (https://arxiv.org/abs/2112.05682)
    """
    sequences, positions = segments.shape
    pieces = -(-positions // min(block, positions))
    length = -(-positions // pieces)

    def cut(x: Array, fill: int = 0) -> Array:
        room = ((0, 0), (0, pieces * length - positions)) + ((0, 0),) * (x.ndim - 2)
        filled = jnp.pad(x, room, constant_values=fill)
        return jnp.moveaxis(filled.reshape(sequences, pieces, length, *x.shape[2:]), 1, 0)

    # The filling is a segment of its own, whose tokens see themselves.
    ids, index = cut(segments, -1), jnp.arange(pieces * length).reshape(pieces, length)

    def attend(query: Queries, key: Keys, value: Keys) -> Queries:
        heads, head_dim = query.shape[2:]
        kv_heads, dtype = key.shape[2], accumulation_dtype(query.dtype)
        blocks = (index, ids, cut(key), cut(value))

        @jax.checkpoint
        def mix(inputs: tuple[Array, Array, Array]) -> Array:
            """The mixed values of one block of queries."""
            rows, own, queries = inputs
            grouped = queries.reshape(sequences, length, kv_heads, heads // kv_heads, head_dim)

            def seen(carry: Any, inputs: Any) -> Any:
                top, total, mixed = carry
                columns, other, keys, values = inputs
                distance = rows[:, None] - columns
                visible = (own[:, :, None] == other[:, None, :]) & (distance >= 0)
                visible = visible if window is None else visible & (distance < window)
                visible = visible[:, None, None]
                scores = jnp.einsum("stgrd,sugd->sgrtu", grouped, keys, preferred_element_type=dtype)
                scores = jnp.where(visible, scores * head_dim**-0.5, jnp.finfo(dtype).min)
                higher = jnp.maximum(top, jax.lax.stop_gradient(jnp.max(scores, axis=-1)))
                shares = jnp.where(visible, jnp.exp(scores - higher[..., None]), 0.0)
                fading = jnp.exp(top - higher)
                added = jnp.einsum(
                    "sgrtu,sugd->sgrtd", shares.astype(values.dtype), values, preferred_element_type=dtype
                )
                return higher, total * fading + jnp.sum(shares, axis=-1), mixed * fading[..., None] + added

            @jax.checkpoint
            def step(carry: Any, inputs: Any) -> tuple[Any, None]:
                columns = inputs[0]
                near = columns[0] <= rows[-1]
                if window is not None:
                    near &= rows[0] - columns[-1] < window
                return jax.lax.cond(near, seen, lambda carry, _: carry, carry, inputs), None

            shape = (sequences, kv_heads, heads // kv_heads, length)
            start = (
                jnp.full(shape, jnp.finfo(dtype).min, dtype),
                jnp.zeros(shape, dtype),
                jnp.zeros((*shape, head_dim), dtype),
            )
            (_, total, mixed), _ = jax.lax.scan(step, start, blocks)
            mean = (mixed / total[..., None]).astype(value.dtype)
            return jnp.moveaxis(mean, 3, 1).reshape(sequences, length, heads, head_dim)

        mixed = jax.lax.map(mix, (index, ids, cut(query)))
        return jnp.moveaxis(mixed, 0, 1).reshape(sequences, -1, heads, head_dim)[:, :positions]

    return attend
