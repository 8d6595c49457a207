"""The decoder: declaration, hidden states and logits, as pure functions of nested dicts."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from models.attention import self_attention
from models.block import Stream, block, declare_block, declare_norm, normalise
from models.config import DecoderConfig
from models.errors import ModelError
from models.layers import declare_linear
from models.parameters import Declaration, Params, Tensor, initial_values, stacked
from models.precision import accumulation_dtype
from models.rope import Rotation, rotation, segment_positions

REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda layer: layer,
    "full": partial(jax.checkpoint, prevent_cse=False),
    "dots": partial(
        jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}
"""What the backward pass keeps of a layer: everything, its input alone, or the outputs of its linear maps.

The scan already keeps XLA from merging the recomputation into the forward pass, hence `prevent_cse=False`.
"""

Tokens = Int[Array | np.ndarray, "sequences positions"]


def declare(config: DecoderConfig) -> Declaration:
    """Declares every tensor of the decoder, layers stacked on a leading axis.

    Examples:
        >>> from models import small
        >>> declare(small(13, 8, heads=2))["embedding"]["table"].axes
        ('vocab', 'width')
    """
    tables = initializers.normal(config.init_std)
    tensors: Declaration = {
        "embedding": {"table": Tensor((config.vocab_size, config.width), ("vocab", "width"), tables)},
        "layers": stacked(declare_block(config), config.layers),
        "final_norm": declare_norm(config),
    }
    if config.positions == "learned":
        tensors["positions"] = {
            "table": Tensor((config.max_positions, config.width), ("positions", "width"), tables)
        }
    if not config.tied_embeddings:
        tensors["unembedding"] = declare_linear(config.width, config.vocab_size, ("width", "vocab"))
    return tensors


def init(config: DecoderConfig, key: PRNGKeyArray | Array, dtype: DTypeLike = jnp.float32) -> Params:
    """Draws fresh parameters for the architecture.

    Examples:
        >>> from models import small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> params = init(config, jax.random.key(0))
        >>> params["layers"]["attention"]["query"]["kernel"].shape  # layers, inputs, outputs
        (1, 8, 8)
    """
    return initial_values(declare(config), key, dtype)


def hidden(
    params: Params,
    tokens: Tokens,
    segments: Tokens,
    config: DecoderConfig,
    *,
    attention: str = "exact",
    remat: str = "dots",
) -> Stream:
    """Final hidden states, after the last norm: what the unembedding reads.

    Args:
        params: as `declare` describes them; computation is in their type.
        tokens: token ids.
        segments: 0 for padding, 1, 2, ... for the rows of a sequence. Tokens attend to earlier tokens of their
            own segment only, and positions restart with each segment.
        config: the architecture (static).
        attention: name of the attention path (static), see `models.attention.PATHS`.
        remat: name of the rematerialisation policy (static), see `REMAT`.

    Returns:
        One vector a token, in the parameters' type.

    Raises:
        ModelError: for an unknown path or policy.

    Examples:
        >>> from models import small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> params, tokens = init(config, jax.random.key(0)), jnp.asarray([[1, 2, 3]])
        >>> jax.jit(lambda params: hidden(params, tokens, jnp.ones_like(tokens), config))(params).shape
        (1, 3, 8)
    """
    if remat not in REMAT:
        raise ModelError(f"unknown remat {remat!r}: choose one of {', '.join(sorted(REMAT))}")
    tokens, segments = jnp.asarray(tokens), jnp.asarray(segments)
    positions = segment_positions(segments)
    turn = turns(positions, config)
    attend = self_attention(attention, segments, config.window)

    def layer(x: Stream, weights: Params) -> tuple[Stream, None]:
        return block(weights, x, turn, config, lambda *qkv: (attend(*qkv), None))

    x = embed(params, tokens, positions)
    x, _ = jax.lax.scan(REMAT[remat](layer), x, params["layers"])
    return normalise(params["final_norm"], x, config)


def logits(
    params: Params,
    tokens: Tokens,
    segments: Tokens,
    config: DecoderConfig,
    *,
    attention: str = "exact",
    remat: str = "dots",
) -> Float[Array, "sequences positions vocab"]:
    """Float32 scores of every next token; arguments as in `hidden`.

    Examples:
        >>> from models import small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> params, tokens = init(config, jax.random.key(0)), jnp.asarray([[1, 2, 3]])
        >>> jax.jit(lambda params: logits(params, tokens, jnp.ones_like(tokens), config))(params).shape
        (1, 3, 13)
    """
    return unembed(params, hidden(params, tokens, segments, config, attention=attention, remat=remat))


def turns(positions: Int[Array, "sequences positions"], config: DecoderConfig) -> Rotation | None:
    """Rotary angles of tokens at these positions of their rows; None where positions are learned."""
    if config.positions == "learned":
        return None
    return rotation(positions, config.head_dim, config.rope_theta, config.rope_scaling)


def embed(params: Params, tokens: Tokens, positions: Tokens) -> Stream:
    """The residual stream's start: one embedding a token, and one a position where they are learned.

    Positions beyond the table read its last entry: padding may stand there, rows may not.
    """
    x = params["embedding"]["table"][tokens]
    return x + params["positions"]["table"].at[positions].get(mode="clip") if "positions" in params else x


def unembed(params: Params, x: Stream) -> Float[Array, "sequences positions vocab"]:
    """Float32 logits from final hidden states, through the embedding itself where it is tied."""
    dtype = accumulation_dtype(x.dtype)
    if "unembedding" in params:
        return jnp.matmul(x, params["unembedding"]["kernel"], preferred_element_type=dtype)
    return jnp.einsum("spd,vd->spv", x, params["embedding"]["table"], preferred_element_type=dtype)
