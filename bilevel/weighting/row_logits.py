"""One logit a row (BDS, SEAL): row weights as a softmax over the whole pool, or as independent sigmoids."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, Weighting


def row_logits(
    rows: int, form: Literal["softmax", "sigmoid"] = "softmax", floor: float = 0.0, keep_share: float = 1.0
) -> Weighting:
    """Weights from a vector of logits, one for each row of the pool; uniform (ones) at the start.

        softmax    p = rows * softmax(logits), of the whole pool, so a batch's mean of p l is an unbiased estimate
        sigmoid    p = 2 sigmoid(logits), no coupling between rows
        floor      w = floor + (1 - floor) p
        gate       rows below the top `keep_share` of the pool train at weight zero

    The gate is straight-through: a row that it shuts out of training still has the derivative of its weight, and
    can come back. (The published selectors gate by rank in the micro-batch; here it is rank in the pool.)

    Args:
        rows: rows of the pool; `row_id` counts 0 .. rows - 1.
        form: softmax ranks rows against each other; with sigmoid and no value function every weight falls to zero,
            since all losses are positive.
        floor: smallest weight, in [0, 1).
        keep_share: share of the pool that trains, in (0, 1].

    Raises:
        ValueError: for a floor or share outside these ranges, or no rows.

    References:
        Shen et al., SEAL, ICLR 2025; Xiao & Chen, arXiv 2511.21056 (BDS).
    """
    if rows < 1:
        raise ValueError(f"row_logits: needs at least one row, not {rows}")
    if not 0 <= floor < 1:
        raise ValueError(f"row_logits: floor must be in [0, 1), not {floor}")
    if not 0 < keep_share <= 1:
        raise ValueError(f"row_logits: keep_share must be in (0, 1], not {keep_share}")
    kept = max(1, round(keep_share * rows))

    def init(key: Array) -> tuple[Float[Array, " pool"], tuple[()]]:
        return jnp.zeros(rows), ()

    def weights(
        logits: Float[Array, " pool"], memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        table = pool_weights(logits, form, floor)
        if kept < rows:
            threshold = jax.lax.top_k(jax.lax.stop_gradient(logits), kept)[0][-1]
            gated = jnp.where(logits >= threshold, table, 0.0)
            table = table + jax.lax.stop_gradient(gated - table)
        return jnp.where(batch["row_id"] >= 0, table[batch["row_id"]], 0.0)

    return Weighting(init, weights, lambda memory, batch, losses: memory)


def pool_weights(
    logits: Float[Array, " pool"], form: Literal["softmax", "sigmoid"] = "softmax", floor: float = 0.0
) -> Float[Array, " pool"]:
    """Returns the weights of the whole pool before any gate; their mean is one under softmax."""
    shares = logits.size * jax.nn.softmax(logits) if form == "softmax" else 2 * jax.nn.sigmoid(logits)
    return floor + (1 - floor) * shares
