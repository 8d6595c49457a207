"""Rotary position embedding."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from models.config import RopeScaling
from models.precision import widened


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which each token's queries and keys turn."""

    cosine: Float[Array, "sequences positions half"]
    sine: Float[Array, "sequences positions half"]


def segment_positions(segments: Int[Array, "sequences positions"]) -> Int[Array, "sequences positions"]:
    """Position of each token in its own segment: 0 where the segment id changes, then 1, 2, ..."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    changes = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(changes, index, 0), axis=1)


def rotation(
    positions: Int[Array, "sequences positions"],
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
) -> Rotation:
    """Angles position * theta^(-2 i / head_dim) for i in 0 .. head_dim / 2 - 1, in float32.

    With `scaling`, a rotation of wavelength w = 2 pi / frequency keeps the share s of its frequency and has the
    rest divided by the factor: s = (original_positions / w - low) / (high - low), cut to 0 .. 1.

    References:
        Su et al., RoFormer, 2021 (https://arxiv.org/abs/2104.09864)
        Grattafiori et al., The Llama 3 Herd of Models, 2024 (https://arxiv.org/abs/2407.21783)
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        turns = scaling.original_positions * frequencies / (2 * math.pi)
        kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(
    x: Float[Array, "sequences positions heads head_dim"], turn: Rotation
) -> Float[Array, "sequences positions heads head_dim"]:
    """Turns the pairs (x_i, x_{i + head_dim / 2}) of every head, the pairing of Hugging Face checkpoints."""
    first, second = jnp.split(widened(x), 2, axis=-1)
    cosine, sine = turn.cosine[:, :, None, :], turn.sine[:, :, None, :]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
