"""What a set of row weights looks like: how many rows it stands for, and how well it separates two groups."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from bilevel.core.losses import over


def effective_sample_size(weights: Float[ArrayLike, "*rows"]) -> Float[Array, ""]:
    """(sum w)^2 / sum w^2: the number of equally weighted rows with the same variance of the mean."""
    weights = jnp.asarray(weights)
    # In units of the largest, whose square neither overflows nor vanishes.
    scaled = over(weights, jnp.max(jnp.abs(weights), initial=0.0))
    return over(jnp.sum(scaled) ** 2, jnp.sum(scaled**2))


def heaviest_share(weights: np.ndarray, rows: float) -> float | None:
    """The share of all weight that the heaviest rows carry.

    Args:
        weights: [rows], 0 or more.
        rows: which share of the rows counts as the heaviest, rounded up to a whole row.

    Returns:
        From `rows` (all weigh the same) to 1 (the others weigh nothing); None when there is no weight.
    """
    weights = np.asarray(weights, np.float64)
    if not weights.sum() > 0:
        return None
    counted = math.ceil(rows * len(weights))
    return float(np.sort(weights)[len(weights) - counted :].sum() / weights.sum())


def separation_auc(lower: np.ndarray, higher: np.ndarray) -> float | None:
    """The probability that a weight of `higher` exceeds one of `lower`, ties counted half.

    The area under the ROC curve; None when a group is empty.
    """
    if len(lower) == 0 or len(higher) == 0:
        return None
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    not_above = np.searchsorted(ordered, higher, side="right")
    return float(np.mean((below + not_above) / 2) / len(lower))
