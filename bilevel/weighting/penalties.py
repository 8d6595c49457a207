"""Terms of the outer variables alone, added to the upper level."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, Weighting
from bilevel.core.tree import PyTree


def entropy_penalty(
    strength: float, weighting: Weighting
) -> Callable[[PyTree, PyTree, Batch, RowLosses | None], Float[Array, ""]]:
    """The outer penalty strength * mean over the batch of w_i log w_i: negative entropy, in nats.

    Added to the upper level it keeps weights from collapsing onto the row of least loss, which is the optimum of
    the single-copy penalty without it. Its exact minimiser there is w proportional to exp(-loss / strength).

    Args:
        strength: tau >= 0.
        weighting: whose weights; without a gate, for a row that is shut out must still feel the term to come back.
    """

    def penalty(outer: PyTree, memory: PyTree, batch: Batch, losses: RowLosses | None) -> Float[Array, ""]:
        weights = weighting.weights(outer, memory, batch, losses)
        positive = jnp.where(weights > 0, weights, 1.0)
        rows = jnp.maximum(jnp.sum(batch["row_id"] >= 0), 1)
        return strength * jnp.sum(jnp.where(weights > 0, positive * jnp.log(positive), 0.0)) / rows

    return penalty
