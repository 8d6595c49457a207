"""The layers of the network that reads rows: each reads the nested dict that it declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from bilevel.core.tree import PyTree, widened

_EPSILON = 1e-6
_ROTARY_BASE = 10000.0


class Tensor(NamedTuple):
    """One declared parameter.

    Attributes:
        shape: its shape.
        initializer: `(key, shape, dtype) -> values`, how fresh values are drawn.
    """

    shape: tuple[int, ...]
    initializer: Callable[..., Array]


Declaration = dict[str, Any]
"""Nested dicts of `Tensor`."""


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which each token's queries and keys turn."""

    cosine: Float[Array, "sequences positions half"]
    sine: Float[Array, "sequences positions half"]


def initial_values(declaration: Declaration, key: Array) -> PyTree:
    """Draws fresh float32 parameters, nested as declared, each tensor from a key of its own."""
    tensors, structure = jax.tree.flatten(declaration, is_leaf=_is_tensor)
    keys = jax.random.split(key, len(tensors))
    draws = [
        tensor.initializer(k, tensor.shape, jnp.float32) for tensor, k in zip(tensors, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, draws)


def stacked(declaration: Declaration, layers: int) -> Declaration:
    """Declares `layers` equal layers, their tensors stacked on a leading axis."""
    return jax.tree.map(lambda t: t._replace(shape=(layers, *t.shape)), declaration, is_leaf=_is_tensor)


def declare_linear(inputs: int, outputs: int, std: float | None = None) -> Declaration:
    """Declares `linear`; fresh kernels have standard deviation `std`, by default 1 / sqrt(inputs)."""
    return {"kernel": Tensor((inputs, outputs), initializers.normal(inputs**-0.5 if std is None else std))}


def linear(params: PyTree, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
    """The map x kernel."""
    # As one matrix: a CPU takes a sixth less time for a whole gradient step than with a batch of matrices.
    product = x.reshape(-1, x.shape[-1]) @ params["kernel"]
    return product.reshape(*x.shape[:-1], product.shape[-1])


def declare_rms_norm(width: int) -> Declaration:
    """Declares `rms_norm`."""
    return {"scale": Tensor((width,), initializers.ones)}


def rms_norm(params: PyTree, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """The norm scale * x / sqrt(mean(x^2) + 1e-6), mean and root in float32.

    References:
        Zhang and Sennrich, Root Mean Square Layer Normalization, 2019 (https://arxiv.org/abs/1910.07467)
    """
    wide = widened(x)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + _EPSILON)
    return (wide * inverse).astype(x.dtype) * params["scale"]


def declare_gated_mlp(width: int, mlp_width: int, output_std: float) -> Declaration:
    """Declares `gated_mlp`; `output_std` is for the map back into the residual stream."""
    return {
        "gate": declare_linear(width, mlp_width),
        "up": declare_linear(width, mlp_width),
        "down": declare_linear(mlp_width, width, output_std),
    }


def gated_mlp(params: PyTree, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """The map down(silu(gate(x)) * up(x)).

    References:
        Shazeer, GLU Variants Improve Transformer, 2020 (https://arxiv.org/abs/2002.05202)
    """
    return linear(params["down"], jax.nn.silu(linear(params["gate"], x)) * linear(params["up"], x))


def declare_block(width: int, mlp_width: int, layers: int) -> Declaration:
    """Declares `block`, one of `layers`; maps into the residual stream shrink with their number."""
    shrink = (2 * layers) ** -0.5
    return {
        "attention_norm": declare_rms_norm(width),
        "attention": {
            "query": declare_linear(width, width),
            "key": declare_linear(width, width),
            "value": declare_linear(width, width),
            "output": declare_linear(width, width, shrink * width**-0.5),
        },
        "mlp_norm": declare_rms_norm(width),
        "mlp": declare_gated_mlp(width, mlp_width, shrink * mlp_width**-0.5),
    }


def block(
    params: PyTree,
    x: Float[Array, "sequences positions width"],
    mask: Bool[Array, "sequences positions positions"],
    heads: int,
    turn: Rotation | None = None,
) -> Float[Array, "sequences positions width"]:
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        params: as `declare_block` describes them.
        x: one vector a position.
        mask: who (second axis) sees whom (third); every position sees one at least.
        heads: heads, which divide the width.
        turn: rotary angles; None where order must not matter.
    """
    x = x + _attention(params["attention"], rms_norm(params["attention_norm"], x), mask, heads, turn)
    return x + gated_mlp(params["mlp"], rms_norm(params["mlp_norm"], x))


def segment_positions(segments: Int[Array, "sequences positions"]) -> Int[Array, "sequences positions"]:
    """Position of each token in its own segment: 0 where the segment id changes, then 1, 2, ..."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    changes = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(changes, index, 0), axis=1)


def rotation(positions: Int[Array, "sequences positions"], head_dim: int) -> Rotation:
    """Angles position * 10000^(-2 i / head_dim) for i in 0 .. head_dim / 2 - 1, in float32.

    References:
        Su et al., RoFormer, 2021 (https://arxiv.org/abs/2104.09864)
    """
    frequencies = _ROTARY_BASE ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def _attention(
    params: PyTree,
    x: Float[Array, "sequences positions width"],
    mask: Bool[Array, "sequences positions positions"],
    heads: int,
    turn: Rotation | None,
) -> Float[Array, "sequences positions width"]:
    split = (*x.shape[:2], heads, x.shape[-1] // heads)
    query, key, value = (linear(params[name], x).reshape(split) for name in ("query", "key", "value"))
    if turn is not None:
        query, key = _rotate(query, turn), _rotate(key, turn)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scores = jnp.einsum("sthd,suhd->shtu", query, key, preferred_element_type=wide)
    scores = jnp.where(mask[:, None], scores * query.shape[-1] ** -0.5, jnp.finfo(wide).min)
    shares = jax.nn.softmax(scores).astype(value.dtype)
    mixed = jnp.einsum("shtu,suhd->sthd", shares, value)
    return linear(params["output"], mixed.reshape(x.shape))


def _rotate(x: Float[Array, "sequences positions heads head_dim"], turn: Rotation) -> Array:
    """Turns the pairs (x_i, x_{i + head_dim / 2}) of every head."""
    first, second = jnp.split(widened(x), 2, axis=-1)
    cosine, sine = turn.cosine[:, :, None, :], turn.sine[:, :, None, :]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, Tensor)
