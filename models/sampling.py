"""Generation with a key/value cache."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from models.attention import Keys, Queries, masked_attention, self_attention
from models.block import block, normalise
from models.config import DecoderConfig
from models.decoder import Tokens, embed, turns, unembed
from models.errors import ModelError
from models.parameters import Params
from models.rope import segment_positions


class Continuation(NamedTuple):
    """What was generated after each prompt; after the stop token every entry is the stop token again.

    Attributes:
        tokens: what was generated; after the stop token every entry is the stop token again.
        lengths: how many tokens were generated, the stop token included.
    """

    tokens: Int[Array, "sequences new"]
    lengths: Int[Array, " sequences"]


class Cache(NamedTuple):
    """Keys and values of every layer. Prompts end at the same slot, so that a step writes one slot."""

    keys: Float[Array, "layers sequences slots kv_heads head_dim"]
    values: Float[Array, "layers sequences slots kv_heads head_dim"]


def generate(
    params: Params,
    tokens: Tokens,
    segments: Tokens,
    config: DecoderConfig,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    key: PRNGKeyArray | Array | None = None,
    stop_token: int | None = None,
    attention: str = "exact",
) -> Continuation:
    """Continues prompts of any lengths, greedily or by sampling from softmax(logits / temperature).

    Args:
        params: as `models.decoder.declare` describes them.
        tokens: one prompt a row, padded on either side.
        segments: 1 on the prompt, 0 on padding.
        config: the architecture.
        max_new_tokens: how many tokens to generate at most; generation ends early once every row has stopped.
        temperature: 0 for the argmax.
        key: PRNG key; needed where the temperature is not 0.
        stop_token: ends a row once it is generated.
        attention: path for reading the prompts, as in `models.decoder.hidden`.

    Returns:
        Continuation.

    Raises:
        ModelError: for settings out of range.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> prompts = jnp.asarray([[1, 2, 3], [4, 0, 0]])
        >>> params = init(config, jax.random.key(0))
        >>> generate(params, prompts, (prompts > 0).astype(int), config, max_new_tokens=2).tokens.shape
        (2, 2)
    """
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if temperature < 0:
        raise ModelError(f"temperature must not be negative, not {temperature}")
    if temperature > 0 and key is None:
        raise ModelError("sampling at a temperature needs a key")
    if tokens.shape[1] + max_new_tokens > config.max_positions:
        raise ModelError(
            f"{tokens.shape[1]} prompt and {max_new_tokens} new tokens, but the model is made for "
            f"{config.max_positions} positions: shorten or trim the prompts, or generate less"
        )
    # The argmax is taken without a key, but one compiled program serves both.
    key = jax.random.key(0) if key is None else key
    stop = -1 if stop_token is None else stop_token
    tokens, segments = jnp.asarray(tokens), jnp.asarray(segments)
    return _generate(params, tokens, segments, config, max_new_tokens, temperature, key, stop, attention)


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "attention"))
def _generate(
    params: Params,
    tokens: Int[Array, "sequences positions"],
    segments: Int[Array, "sequences positions"],
    config: DecoderConfig,
    max_new_tokens: int,
    temperature: float | Array,
    key: PRNGKeyArray | Array,
    stop: int | Array,
    attention: str,
) -> Continuation:
    tokens, segments = _right_aligned(tokens, segments)
    lengths = jnp.sum(segments > 0, axis=1, dtype=jnp.int32)
    width = tokens.shape[1]
    scores, cache = prefill(params, tokens, segments, config, width + max_new_tokens, attention)

    def pick(scores: Float[Array, "sequences vocab"], index: Array) -> Int[Array, " sequences"]:
        sampled = jax.random.categorical(
            jax.random.fold_in(key, index), scores / jnp.where(temperature > 0, temperature, 1.0)
        )
        return jnp.where(temperature > 0, sampled, jnp.argmax(scores, axis=-1)).astype(jnp.int32)

    def unfinished(state: tuple) -> Array:
        index, _, _, _, running = state
        return (index < max_new_tokens) & jnp.any(running)

    def step(state: tuple) -> tuple:
        index, scores, cache, new, running = state
        token = jnp.where(running, pick(scores, index), stop)
        new = new.at[:, index].set(token)
        scores, cache = decode(params, token, lengths + index, width + index, width - lengths, cache, config)
        return index + 1, scores, cache, new, running & (token != stop)

    new = jnp.full((tokens.shape[0], max_new_tokens), stop, jnp.int32)
    running = jnp.ones(tokens.shape[0], bool)
    _, _, _, new, _ = jax.lax.while_loop(unfinished, step, (jnp.int32(0), scores, cache, new, running))
    # The stop token is -1 where there is none, and then no entry equals it.
    return Continuation(new, jnp.minimum(jnp.sum(new != stop, axis=1) + 1, max_new_tokens))


def prefill(
    params: Params,
    tokens: Int[Array, "sequences positions"],
    segments: Int[Array, "sequences positions"],
    config: DecoderConfig,
    slots: int,
    attention: str = "exact",
) -> tuple[Float[Array, "sequences vocab"], Cache]:
    """Reads prompts that end at the last position.

    Returns:
        The scores of each next token, and a cache of `slots` positions with the prompts in its first ones.
    """
    positions = segment_positions(segments)
    turn = turns(positions, config)
    attend = self_attention(attention, segments, config.window)

    def layer(x: Array, weights: Params) -> tuple[Array, tuple[Keys, Keys]]:
        return block(
            weights, x, turn, config, lambda query, key, value: (attend(query, key, value), (key, value))
        )

    x, (keys, values) = jax.lax.scan(layer, embed(params, tokens, positions), params["layers"])
    room = ((0, 0), (0, 0), (0, slots - tokens.shape[1]), (0, 0), (0, 0))
    return _next_scores(params, x, config), Cache(jnp.pad(keys, room), jnp.pad(values, room))


def decode(
    params: Params,
    token: Int[Array, " sequences"],
    position: Int[Array, " sequences"],
    slot: Int[Array, ""],
    first: Int[Array, " sequences"],
    cache: Cache,
    config: DecoderConfig,
) -> tuple[Float[Array, "sequences vocab"], Cache]:
    """Reads one more token a row.

    Args:
        params: the model.
        token: the tokens.
        position: each one's position in its row.
        slot: where in the cache all of them are written.
        first: the slot at which each row begins; slots before it are padding.
        cache: what was read so far.
        config: the architecture.

    Returns:
        The scores of each next token, and the cache with the new keys and values.
    """
    turn = turns(position[:, None], config)
    index = jnp.arange(cache.keys.shape[2])
    # A row without a prompt sees its own slot at least.
    visible = (index >= jnp.minimum(first, slot)[:, None]) & (index <= slot)
    if config.window is not None:
        visible &= index > slot - config.window

    def layer(carry: tuple[Array, Cache], inputs: tuple[Params, Array]) -> tuple[tuple[Array, Cache], None]:
        (x, cache), (weights, number) = carry, inputs

        def attend(query: Queries, key: Keys, value: Keys) -> tuple[Queries, Cache]:
            place = (number, 0, slot, 0, 0)
            keys = jax.lax.dynamic_update_slice(cache.keys, key[None], place)
            values = jax.lax.dynamic_update_slice(cache.values, value[None], place)
            return masked_attention(query, keys[number], values[number], visible[:, None]), Cache(
                keys, values
            )

        return block(weights, x, turn, config, attend), None

    # Carried, not scanned over: XLA then writes one slot in place instead of copying the cache every step.
    inputs = (params["layers"], jnp.arange(config.layers, dtype=jnp.int32))
    (x, cache), _ = jax.lax.scan(layer, (embed(params, token[:, None], position[:, None]), cache), inputs)
    return _next_scores(params, x, config), cache


def _next_scores(params: Params, x: Array, config: DecoderConfig) -> Float[Array, "sequences vocab"]:
    return unembed(params, normalise(params["final_norm"], x[:, -1:], config))[:, 0]


def _right_aligned(
    tokens: Int[Array, "sequences positions"], segments: Int[Array, "sequences positions"]
) -> tuple[Array, Array]:
    """Turns each row until its last token stands at the last position."""
    width = tokens.shape[1]
    trailing = jnp.argmax(segments[:, ::-1] > 0, axis=1)
    index = (jnp.arange(width) - trailing[:, None]) % width
    return jnp.take_along_axis(tokens, index, axis=1), jnp.take_along_axis(segments, index, axis=1)
