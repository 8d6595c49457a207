"""How well a model predicts each token, without holding the logits of every position at once."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.block import Stream
from models.config import DecoderConfig
from models.decoder import hidden, unembed
from models.errors import ModelError
from models.parameters import Params
from models.precision import widened
from models.rope import segment_positions

LOGITS_AT_ONCE = 2**26
"""Most logits that `token_scores` holds unless told otherwise: 256 MiB in float32."""


class TokenScores(NamedTuple):
    """How well each token was predicted from the tokens before it in its segment; see `token_scores`."""

    loss: Float[Array, "sequences positions"]
    correct: Bool[Array, "sequences positions"]


def token_scores(
    params: Params,
    batch: Mapping[str, Array | np.ndarray],
    config: DecoderConfig,
    *,
    attention: str = "exact",
    remat: str = "dots",
    chunk: int | None = None,
) -> TokenScores:
    """How well each token is predicted from the tokens before it in its segment.

    loss[s, t] = -log p(tokens[s, t] | tokens[s, <t]), in float32; correct[s, t]: the token is p's argmax.
    The first token of a segment is predicted from nothing: its loss is 0 and it is not correct. Which tokens
    count is the caller's business: nothing is masked here.

    Logits are made for a few positions of every sequence at a time and made again in the backward pass, so that
    the vocabulary does not set the memory: at 8 x 512 tokens, a vocabulary of 131072 and width 256, temporary
    memory on a CPU is 0.7 GiB for a gradient, 1.0 for a jvp and 1.3 for a Hessian-vector product, against 4.0,
    6.0 and 10.1 with all logits at once. Sequences stay whole, and with them their split over devices.

    Args:
        params: as `models.decoder.declare` describes them.
        batch: holds `tokens` and `segments`; other entries are ignored.
        config: the architecture (static).
        attention: as in `models.decoder.hidden`.
        remat: as in `models.decoder.hidden`.
        chunk: positions at a time (static). By default as many as keep to `LOGITS_AT_ONCE`, all of them for a
            small vocabulary; every value gives the same scores and derivatives.

    Returns:
        TokenScores, aligned with `tokens`; `correct` costs nothing under jit where it is not used.

    Raises:
        ModelError: for an unknown path or policy, or no positions at a time.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> batch = {"tokens": jnp.asarray([[1, 2, 3, 4]]), "segments": jnp.asarray([[1, 1, 2, 2]])}
        >>> scores = jax.jit(lambda params: token_scores(params, batch, config))(init(config, jax.random.key(0)))
        >>> scores.loss[0] > 0  # nothing predicts the first token of a row
        Array([False,  True, False,  True], dtype=bool)
    """
    if chunk is not None and chunk < 1:
        raise ModelError(f"chunk must be at least 1 position, not {chunk}")
    tokens, segments = jnp.asarray(batch["tokens"]), jnp.asarray(batch["segments"])
    x = hidden(params, tokens, segments, config, attention=attention, remat=remat)
    if chunk is None:
        chunk = max(1, LOGITS_AT_ONCE // (tokens.shape[0] * config.vocab_size))
    return _aligned(*next_token_scores(params, x, jnp.roll(tokens, -1, axis=1), chunk), segments)


def _aligned(loss: Array, correct: Array, segments: Int[Array, "sequences positions"]) -> TokenScores:
    """What stands where a token is predicted, moved to where it stands; nothing predicts a segment's first."""
    predicted = segment_positions(segments) > 0
    return TokenScores(
        jnp.where(predicted, jnp.roll(loss, 1, axis=1), 0.0), predicted & jnp.roll(correct, 1, axis=1)
    )


def next_token_scores(
    params: Params, x: Stream, following: Int[Array, "sequences positions"], chunk: int
) -> tuple[Array, Array]:
    """-log p(following) and whether it is the argmax, from final hidden states, `chunk` positions at a time."""
    sequences, positions = following.shape
    if chunk >= positions:
        return _scores(unembed(params, x), following)
    pieces = -(-positions // chunk)
    # Pieces of equal length leave less room to fill than full ones with a short last.
    length = -(-positions // pieces)

    def cut(values: Array) -> Array:
        room = ((0, 0), (0, pieces * length - positions)) + ((0, 0),) * (values.ndim - 2)
        padded = jnp.pad(values, room).reshape(sequences, pieces, length, *values.shape[2:])
        return jnp.moveaxis(padded, 1, 0)

    name = "unembedding" if "unembedding" in params else "embedding"
    # Its gradient is a sum over the pieces: made wide out here, it is accumulated wide.
    wide = jax.tree.map(widened, params[name])

    def score(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        piece, following = inputs
        head = {name: jax.tree.map(lambda leaf: leaf.astype(x.dtype), wide)}
        return _scores(unembed(head, piece), following)

    loss, correct = jax.lax.map(jax.checkpoint(score, prevent_cse=False), (cut(x), cut(following)))
    return _joined(loss, positions), _joined(correct, positions)


def _joined(pieces: Array, positions: int) -> Array:
    return jnp.moveaxis(pieces, 0, 1).reshape(pieces.shape[1], -1)[:, :positions]


def _scores(
    scores: Float[Array, "sequences positions vocab"], following: Int[Array, "sequences positions"]
) -> tuple[Array, Array]:
    target = jnp.take_along_axis(scores, following[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(scores, axis=-1) - target, jnp.argmax(scores, axis=-1) == following
