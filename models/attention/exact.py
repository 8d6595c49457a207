"""Attention whose scores are all there at once, and the pieces that other paths share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.precision import accumulation_dtype

Queries = Float[Array, "sequences positions heads head_dim"]
Keys = Float[Array, "sequences keys kv_heads head_dim"]
Attend = Callable[[Queries, Keys, Keys], Queries]
"""Mixes values: (queries, keys, values) -> one vector a head and position."""


def exact(segments: Int[Array, "sequences positions"], window: int | None = None) -> Attend:
    """Materialises the scores; the mask is computed once for all layers."""
    mask = causal_mask(segments, window)
    return lambda query, key, value: masked_attention(query, key, value, mask)


def causal_mask(
    segments: Int[Array, "sequences positions"], window: int | None = None
) -> Bool[Array, "sequences positions positions"]:
    """True where a query position (second axis) may see a key position (third axis)."""
    visible = jnp.tril(segments[:, :, None] == segments[:, None, :])
    return visible if window is None else jnp.triu(visible, 1 - window)


def masked_attention(
    query: Queries, key: Keys, value: Keys, mask: Bool[Array, "sequences positions keys"]
) -> Queries:
    """The mean of the visible values, with weights softmax(query key^T / sqrt(head_dim)) in float32.

    Grouped key/value heads are never repeated in memory: query heads g * r .. g * r + r - 1 read key/value
    head g. Every query needs at least one key.
    """
    sequences, positions, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(sequences, positions, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum(
        "stgrd,sugd->sgrtu", grouped, key, preferred_element_type=accumulation_dtype(query.dtype)
    )
    scores = jnp.where(mask[:, None, None], scores * head_dim**-0.5, jnp.finfo(scores.dtype).min)
    shares = softmax(scores).astype(value.dtype)
    return jnp.einsum("sgrtu,sugd->stgrd", shares, value).reshape(sequences, positions, heads, head_dim)


@jax.custom_jvp
def softmax(scores: Float[Array, "*batch keys"]) -> Float[Array, "*batch keys"]:
    """Softmax over the last axis whose derivative needs its result alone, not the exponentials and their sum.

    With y the result and t a tangent of the scores, the tangent of y is y * (t - sum(y * t)); every further
    derivative follows from that expression.
    """
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


@softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (scores,), (tangent,) = primals, tangents
    shares = softmax(scores)
    return shares, shares * (tangent - jnp.sum(shares * tangent, axis=-1, keepdims=True))
