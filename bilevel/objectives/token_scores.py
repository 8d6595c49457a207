"""How well a model predicts each token, from its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel.core.tree import widened


class TokenScores(NamedTuple):
    """How well each token was predicted from those before it in its row.

    Attributes:
        loss: -log p(token | those before it), in nats; 0 for the first token of a row, which nothing predicts.
        correct: whether the token is the argmax of p; never of the first token.
    """

    loss: Float[Array, "sequences tokens"]
    correct: Bool[Array, "sequences tokens"]


def scores_of_logits(
    logits: Float[Array, "sequences tokens vocabulary"], batch: Mapping[str, Any]
) -> TokenScores:
    """The scores of every token, in float32, from the logits of the token after each.

    Args:
        logits: `logits[s, t]` predicts `batch["tokens"][s, t + 1]`.
        batch: `tokens`, and `segments`: rows of a sequence that holds several.
    """
    tokens, segments = jnp.asarray(batch["tokens"]), jnp.asarray(batch["segments"])
    logits, following = widened(logits), jnp.roll(tokens, -1, axis=1)
    loss = (
        jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, following[..., None], axis=-1)[..., 0]
    )
    correct = jnp.argmax(logits, axis=-1) == following
    # What stands where a token is predicted moves to where the token stands.
    predicted = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
    return TokenScores(
        jnp.where(predicted, jnp.roll(loss, 1, axis=1), 0.0), predicted & jnp.roll(correct, 1, axis=1)
    )
