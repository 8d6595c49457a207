"""The keys and values of what rows have read: prompts at once, then one token a row at a time.

All rows write the same slot at the same time, so that a step is one write in place, and the slots are used in turn,
round and round. A row of n tokens sees the last n slots. Keys are turned by their positions before they are kept, so a
slot has no position of its own, and a row that begins late is a row like any other: its prompt is laid into the slots
before the one that is written next.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from models.attention import Keys, Queries, path_for, self_attention, softmax
from models.block import block, normalise
from models.config import DecoderConfig
from models.decoder import embed, turns, unembed
from models.parameters import Params
from models.precision import accumulation_dtype
from models.rope import segment_positions

Scores = Float[Array, "rows vocab"]


class Cache(NamedTuple):
    """Keys and values of every layer, in slots that are written in turn, laid out as the two products read them."""

    keys: Float[Array, "layers rows kv_heads head_dim slots"]
    values: Float[Array, "layers rows kv_heads slots head_dim"]

    @property
    def slots(self) -> int:
        """How many tokens of a row are remembered."""
        return self.keys.shape[-1]


class Read(NamedTuple):
    """Keys and values of prompts that were read at once."""

    keys: Float[Array, "layers prompts positions kv_heads head_dim"]
    values: Float[Array, "layers prompts positions kv_heads head_dim"]


def empty_cache(config: DecoderConfig, rows: int, slots: int, dtype: DTypeLike) -> Cache:
    """Makes room for rows of up to `slots` tokens."""
    shape = (config.layers, rows, config.kv_heads)
    return Cache(
        jnp.zeros((*shape, config.head_dim, slots), dtype), jnp.zeros((*shape, slots, config.head_dim), dtype)
    )


def room_for(tokens: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that is not below a number of tokens: few shapes to compile."""
    power = max(16, power_of_two(tokens))
    return power * 3 // 4 if power > 16 and tokens <= power * 3 // 4 else power


def power_of_two(count: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << (count - 1).bit_length()


def prefill(
    params: Params,
    tokens: Int[Array, "rows positions"],
    segments: Int[Array, "rows positions"],
    config: DecoderConfig,
    attention: str,
) -> tuple[Scores, Read]:
    """Reads prompts that end at the last position.

    Args:
        params: the model.
        tokens: one prompt a row, padded on the left.
        segments: 1 on the prompt, 0 on padding.
        config: the architecture.
        attention: path, as in `models.decoder.hidden`, or `auto`.

    Returns:
        The scores of each next token, and what was read.
    """
    positions = segment_positions(segments)
    turn = turns(positions, config)
    attend = self_attention(path_for(attention, tokens.shape[1]), segments, config.window)

    def layer(x: Array, weights: Params) -> tuple[Array, tuple[Keys, Keys]]:
        return block(
            weights, x, turn, config, lambda query, key, value: (attend(query, key, value), (key, value))
        )

    x, (keys, values) = jax.lax.scan(layer, embed(params, tokens, positions), params["layers"])
    return _next_scores(params, x, config), Read(keys, values)


def lay(cache: Cache, prompts: Read, rows: Int[Array, " prompts"], slot: Int[Array, ""]) -> Cache:
    """Lays prompts into rows, so that they end just before a slot.

    Args:
        cache: where to.
        prompts: from `prefill`; no more positions than the cache has slots.
        rows: which row each becomes; one that there is not is left out.
        slot: the slot that is written next.
    """
    positions = prompts.keys.shape[2]
    slots = (slot - positions + jnp.arange(positions)) % cache.slots
    keys, values = (jnp.transpose(x, (1, 2, 0, 3, 4)) for x in prompts)
    return Cache(
        cache.keys.at[:, rows[:, None], :, :, slots].set(keys, mode="drop"),
        cache.values.at[:, rows[:, None], :, slots].set(values, mode="drop"),
    )


def decode(
    params: Params,
    token: Int[Array, " rows"],
    lengths: Int[Array, " rows"],
    slot: Int[Array, ""],
    cache: Cache,
    config: DecoderConfig,
) -> tuple[Scores, Cache]:
    """Reads one more token a row.

    Args:
        params: the model.
        token: the tokens.
        lengths: how many tokens each row has with this one, at least 1.
        slot: where in the cache all of them are written.
        cache: what was read so far.
        config: the architecture.

    Returns:
        The scores of each next token, and the cache with the new keys and values.
    """
    positions = lengths[:, None] - 1
    turn = turns(positions, config)
    age = (slot - jnp.arange(cache.slots)) % cache.slots
    seen = lengths if config.window is None else jnp.minimum(lengths, config.window)
    visible = age < seen[:, None]

    def layer(carry: tuple[Array, Cache], inputs: tuple[Params, Array]) -> tuple[tuple[Array, Cache], None]:
        (x, cache), (weights, number) = carry, inputs

        def attend(query: Queries, key: Keys, value: Keys) -> tuple[Queries, Cache]:
            key, value = jnp.transpose(key, (0, 2, 3, 1)), jnp.swapaxes(value, 1, 2)
            keys = jax.lax.dynamic_update_slice(cache.keys, key[None], (number, 0, 0, 0, slot))
            values = jax.lax.dynamic_update_slice(cache.values, value[None], (number, 0, 0, slot, 0))
            return _attention(query, keys[number], values[number], visible), Cache(keys, values)

        return block(weights, x, turn, config, attend), None

    # Carried, not scanned over: XLA then writes one slot in place instead of copying the cache every step.
    inputs = (params["layers"], jnp.arange(config.layers, dtype=jnp.int32))
    (x, cache), _ = jax.lax.scan(layer, (embed(params, token[:, None], positions), cache), inputs)
    return _next_scores(params, x, config), cache


def _attention(
    query: Queries,
    keys: Float[Array, "rows kv_heads head_dim slots"],
    values: Float[Array, "rows kv_heads slots head_dim"],
    visible: Bool[Array, "rows slots"],
) -> Queries:
    """`models.attention.masked_attention` of one query a row, on keys and values that need not be turned round."""
    rows, _, heads, head_dim = query.shape
    grouped = query.reshape(rows, keys.shape[1], heads // keys.shape[1], head_dim)
    scores = jnp.einsum(
        "xgrd,xgdu->xgru", grouped, keys, preferred_element_type=accumulation_dtype(query.dtype)
    )
    scores = jnp.where(visible[:, None, None], scores * head_dim**-0.5, jnp.finfo(scores.dtype).min)
    shares = softmax(scores).astype(values.dtype)
    return jnp.einsum("xgru,xgud->xgrd", shares, values).reshape(query.shape)


def _next_scores(params: Params, x: Array, config: DecoderConfig) -> Scores:
    return unembed(params, normalise(params["final_norm"], x[:, -1:], config))[:, 0]
