"""One layer of the decoder: its declaration, and the function of the residual stream."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from models.attention import Keys, Queries
from models.config import DecoderConfig
from models.layers import (
    declare_gated_mlp,
    declare_layer_norm,
    declare_linear,
    declare_plain_mlp,
    declare_rms_norm,
    gated_mlp,
    layer_norm,
    linear,
    plain_mlp,
    rms_norm,
)
from models.parameters import Declaration, Params
from models.rope import Rotation, rotate

Stream = Float[Array, "sequences positions width"]


def declare_block(config: DecoderConfig) -> Declaration:
    """Declares one layer.

    Fresh kernels have variance 1 / inputs; the two maps of a layer back into the residual stream are smaller
    by sqrt(2 layers), so that the stream's variance does not grow with depth (Radford et al., GPT-2, 2019).
    """
    heads, kv_heads = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shrink, bias = (2 * config.layers) ** -0.5, config.attention_bias
    declare_mlp = declare_gated_mlp if config.mlp == "gated" else declare_plain_mlp
    attention = {
        "query": declare_linear(config.width, heads, ("width", "heads"), bias=bias),
        "key": declare_linear(config.width, kv_heads, ("width", "kv_heads"), bias=bias),
        "value": declare_linear(config.width, kv_heads, ("width", "kv_heads"), bias=bias),
        "output": declare_linear(
            heads, config.width, ("heads", "width"), bias=config.output_bias, std=shrink * heads**-0.5
        ),
    }
    if config.qk_norm:
        # One scale for all heads: its axis is no axis of the model's width.
        scale = declare_rms_norm(config.head_dim)["scale"]._replace(axes=("head_dim",))
        attention |= {"query_norm": {"scale": scale}, "key_norm": {"scale": scale}}
    return {
        "attention_norm": declare_norm(config),
        "attention": attention,
        "mlp_norm": declare_norm(config),
        "mlp": declare_mlp(
            config.width, config.mlp_width, bias=config.mlp_bias, output_std=shrink * config.mlp_width**-0.5
        ),
    }


def block(
    params: Params,
    x: Stream,
    turn: Rotation | None,
    config: DecoderConfig,
    attend: Callable[[Queries, Keys, Keys], tuple[Queries, Any]],
) -> tuple[Stream, Any]:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        params: one layer's tensors.
        x: the residual stream.
        turn: rotary angles of each token; None where positions are learned.
        config: the architecture.
        attend: mixes values, and returns beside them what is to be carried out of the layer (a cache).

    Returns:
        The stream, and what `attend` carried out.
    """
    batch, weights = x.shape[:2], params["attention"]
    y = normalise(params["attention_norm"], x, config)
    query = linear(weights["query"], y).reshape(*batch, config.heads, config.head_dim)
    key = linear(weights["key"], y).reshape(*batch, config.kv_heads, config.head_dim)
    value = linear(weights["value"], y).reshape(*batch, config.kv_heads, config.head_dim)
    if config.qk_norm:
        query = rms_norm(weights["query_norm"], query, config.norm_epsilon)
        key = rms_norm(weights["key_norm"], key, config.norm_epsilon)
    if turn is not None:
        query, key = rotate(query, turn), rotate(key, turn)
    mixed, carried = attend(query, key, value)
    x = x + linear(weights["output"], mixed.reshape(*batch, config.heads * config.head_dim))
    mlp = gated_mlp if config.mlp == "gated" else plain_mlp
    return x + mlp(params["mlp"], normalise(params["mlp_norm"], x, config)), carried


def declare_norm(config: DecoderConfig) -> Declaration:
    """Declares `normalise`."""
    return declare_rms_norm(config.width) if config.norm == "rms" else declare_layer_norm(config.width)


def normalise(params: Params, x: Stream, config: DecoderConfig) -> Stream:
    """The architecture's norm of the residual stream."""
    return (rms_norm if config.norm == "rms" else layer_norm)(params, x, config.norm_epsilon)
