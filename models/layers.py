"""Building blocks: linear maps, norms, MLPs, attention. Each reads the nested dict that it declares.

This module is the door for those who build a network of their own from these blocks: what they need to declare its
tensors and to draw its values is named here, too.
"""

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Bool, Float

from models.attention.exact import masked_attention
from models.parameters import Declaration, Params, Tensor
from models.parameters import initial_values as initial_values
from models.parameters import stacked as stacked
from models.precision import widened
from models.rope import Rotation, rotate
from models.rope import rotation as rotation
from models.rope import segment_positions as segment_positions


def declare_linear(
    inputs: int, outputs: int, axes: tuple[str, str], *, bias: bool = False, std: float | None = None
) -> Declaration:
    """Declares `linear`; fresh kernels have standard deviation `std`, by default 1 / sqrt(inputs)."""
    kernel = Tensor((inputs, outputs), axes, initializers.normal(inputs**-0.5 if std is None else std))
    return {"kernel": kernel} | ({"bias": Tensor((outputs,), axes[1:], initializers.zeros)} if bias else {})


def linear(params: Params, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    """The map x kernel (+ bias), and what an adapter beside the kernel adds (`models.lora.attach`)."""
    # As one matrix: a CPU takes a sixth less time for a whole gradient step than with a batch of matrices.
    flat = x.reshape(-1, x.shape[-1])
    product = flat @ params["kernel"]
    if "lora_a" in params:
        product = product + (flat @ params["lora_a"]) @ params["lora_b"]
    product = product + params["bias"] if "bias" in params else product
    return product.reshape(*x.shape[:-1], product.shape[-1])


def declare_rms_norm(width: int) -> Declaration:
    """Declares `rms_norm`."""
    return {"scale": Tensor((width,), ("width",), initializers.ones)}


def rms_norm(params: Params, x: Float[Array, "*batch width"], epsilon: float) -> Float[Array, "*batch width"]:
    """The norm scale * x / sqrt(mean(x^2) + epsilon), mean and root in float32.

    References:
      Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (https://arxiv.org/abs/1910.07467)
    """
    wide = widened(x)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * inverse).astype(x.dtype) * params["scale"]


def declare_layer_norm(width: int) -> Declaration:
    """Declares `layer_norm`."""
    return declare_rms_norm(width) | {"bias": Tensor((width,), ("width",), initializers.zeros)}


def layer_norm(
    params: Params, x: Float[Array, "*batch width"], epsilon: float
) -> Float[Array, "*batch width"]:
    """The norm scale * (x - mean(x)) / sqrt(variance(x) + epsilon) + bias, mean and root in float32.

    References:
      Ba, Kiros and Hinton, Layer Normalization, 2016 (https://arxiv.org/abs/1607.06450)
    """
    wide = widened(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    return (centred * inverse).astype(x.dtype) * params["scale"] + params["bias"]


def declare_gated_mlp(width: int, mlp_width: int, *, bias: bool, output_std: float) -> Declaration:
    """Declares `gated_mlp`; `output_std` is for the map back into the residual stream."""
    return {
        "gate": declare_linear(width, mlp_width, ("width", "mlp"), bias=bias),
        "up": declare_linear(width, mlp_width, ("width", "mlp"), bias=bias),
        "down": declare_linear(mlp_width, width, ("mlp", "width"), bias=bias, std=output_std),
    }


def gated_mlp(params: Params, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """The map down(silu(gate(x)) * up(x)).

    References:
      Shazeer, GLU Variants Improve Transformer, 2020 (https://arxiv.org/abs/2002.05202)
    """
    return linear(params["down"], jax.nn.silu(linear(params["gate"], x)) * linear(params["up"], x))


def declare_plain_mlp(width: int, mlp_width: int, *, bias: bool, output_std: float) -> Declaration:
    """Declares `plain_mlp`; `output_std` is for the map back into the residual stream."""
    return {
        "up": declare_linear(width, mlp_width, ("width", "mlp"), bias=bias),
        "down": declare_linear(mlp_width, width, ("mlp", "width"), bias=bias, std=output_std),
    }


def plain_mlp(params: Params, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """The map down(gelu(up(x))), with gelu in its tanh form (GPT-2's).

    References:
      Hendrycks and Gimpel, Gaussian Error Linear Units, 2016 (https://arxiv.org/abs/1606.08415)
    """
    return linear(params["down"], jax.nn.gelu(linear(params["up"], x), approximate=True))


def declare_attention(width: int, heads: int, *, output_std: float) -> Declaration:
    """Declares `attention`; `output_std` is for the map back into the residual stream."""
    return {
        "query": declare_linear(width, width, ("width", "heads")),
        "key": declare_linear(width, width, ("width", "heads")),
        "value": declare_linear(width, width, ("width", "heads")),
        "output": declare_linear(width, width, ("heads", "width"), std=output_std),
    }


def attention(
    params: Params,
    x: Float[Array, "sequences positions width"],
    mask: Bool[Array, "sequences positions positions"],
    heads: int,
    turn: Rotation | None = None,
) -> Float[Array, "sequences positions width"]:
    """Self-attention in any direction: a position (second axis of the mask) mixes those where the mask is true.

    Args:
      params: as `declare_attention` describes them.
      x: one vector a position.
      mask: who sees whom; every position needs one at least.
      heads: heads, which divide the width.
      turn: rotary angles; None where order must not matter.
    """
    split = (*x.shape[:2], heads, x.shape[-1] // heads)
    query, key, value = (linear(params[name], x).reshape(split) for name in ("query", "key", "value"))
    if turn is not None:
        query, key = rotate(query, turn), rotate(key, turn)
    return linear(params["output"], masked_attention(query, key, value, mask).reshape(x.shape))


def declare_encoder_block(width: int, heads: int, mlp_width: int, layers: int) -> Declaration:
    """Declares `encoder_block`, one of `layers`; maps into the residual stream shrink with their number."""
    shrink = (2 * layers) ** -0.5
    return {
        "attention_norm": declare_rms_norm(width),
        "attention": declare_attention(width, heads, output_std=shrink * width**-0.5),
        "mlp_norm": declare_rms_norm(width),
        "mlp": declare_gated_mlp(width, mlp_width, bias=False, output_std=shrink * mlp_width**-0.5),
    }


def encoder_block(
    params: Params,
    x: Float[Array, "sequences positions width"],
    mask: Bool[Array, "sequences positions positions"],
    heads: int,
    turn: Rotation | None = None,
) -> Float[Array, "sequences positions width"]:
    """One layer of an encoder: x + attention(norm(x)), then x + mlp(norm(x)); arguments as in `attention`."""
    epsilon = 1e-6
    x = x + attention(params["attention"], rms_norm(params["attention_norm"], x, epsilon), mask, heads, turn)
    return x + gated_mlp(params["mlp"], rms_norm(params["mlp_norm"], x, epsilon))
