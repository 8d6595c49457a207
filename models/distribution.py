"""What a token is drawn from: temperature, the k best, the nucleus; and the draw, by a key a row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from models.precision import widened

Scores = Float[Array, "rows vocab"]
Values = Float[Array, " rows"]


class Filters(NamedTuple):
    """What is made of the softmax before a token is drawn; what is None is left out of the program.

    Attributes:
        temperature: what scores are divided by; None for the argmax.
        top_k: how many tokens are kept.
        top_p: the share of the probability that is kept.
    """

    temperature: Float[Array, ""] | None = None
    top_k: Int[Array, ""] | None = None
    top_p: Float[Array, ""] | None = None


class Drawn(NamedTuple):
    """One token a row.

    Attributes:
        token: what was drawn.
        behaviour: its log-probability under the distribution that it was drawn from; 0 for an argmax.
        policy: its log-probability under the softmax of the scores as they are.
    """

    token: Int[Array, " rows"]
    behaviour: Values
    policy: Values


def draw(scores: Scores, keys: Key[Array, " rows"], filters: Filters) -> Drawn:
    """Draws a token a row, by the row's own key alone: the argmax of its filtered scores plus Gumbel noise."""
    scores = widened(scores)
    policy = jax.nn.log_softmax(scores, axis=-1)
    if filters.temperature is None:
        token = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        return Drawn(token, jnp.zeros(token.shape, scores.dtype), _at(policy, token))
    kept = filtered(scores, filters)
    token = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
    return Drawn(token, _at(jax.nn.log_softmax(kept, axis=-1), token), _at(policy, token))


def filtered(scores: Scores, filters: Filters) -> Scores:
    """Scores / temperature, and -inf for every token outside the `top_k` best or, of these, outside the nucleus.

    The nucleus is the smallest set of most probable tokens that holds at least `top_p` of the probability that the
    `top_k` best share out. Tokens as good as the last that is kept are kept too, so that no order of equals matters.

    References:
        Holtzman et al., The Curious Case of Neural Text Degeneration, 2020 (https://arxiv.org/abs/1904.09751)
    """
    assert filters.temperature is not None
    scores = scores / filters.temperature
    if filters.top_k is not None:
        scores = _above(scores, jnp.ones_like(scores), filters.top_k.astype(scores.dtype))
    if filters.top_p is not None:
        scores = _above(scores, jax.nn.softmax(scores, axis=-1), filters.top_p)
    return scores


def _above(scores: Scores, weights: Scores, target: Float[Array, ""]) -> Scores:
    """The scores that are no less than the largest score at which those no less weigh the target in sum; else -inf.

    The score is found by halving the range of all float32 numbers, in order, 32 times: exact, and without sorting
    the vocabulary.
    """
    order = _ordered(scores)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # of two integers, rounded up, whose sum may not fit
        enough = jnp.sum(jnp.where(order >= middle[:, None], weights, 0.0), axis=-1) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    bounds = jnp.min(order, axis=-1), jnp.max(order, axis=-1)
    threshold, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(order >= threshold[:, None], scores, -jnp.inf)


def _ordered(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Integers in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _at(values: Scores, token: Int[Array, " rows"]) -> Values:
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]
