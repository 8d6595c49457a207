"""Building blocks: linear maps, norms, MLPs. Each reads the nested dict that it declares."""

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Float

from models.parameters import Declaration, Params, Tensor
from models.precision import widened


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
