"""One logit a row (BDS, SEAL): row weights as a softmax over the whole pool, or as independent sigmoids."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, Sizes, Weighting, as_it_is
from bilevel.core.ranges import check_ranges
from bilevel.weighting.indices import named_ids, size_of

Form = Literal["softmax", "sigmoid"]


def row_logits(
    form: Form = "softmax", floor: float = 0.0, keep_share: float = 1.0, by: str = "row_id"
) -> Weighting:
    """Weights from a vector of logits, one for each row of the pool; uniform (ones) at the start.

        softmax    p = rows * softmax(logits), of the whole pool, so a batch's mean of p l is an unbiased estimate
        sigmoid    p = 2 sigmoid(logits), no coupling between rows
        floor      w = floor + (1 - floor) p
        gate       rows below the top `keep_share` of the pool train at weight zero

    The gate is straight-through: a row that it shuts out of training still has the derivative of its weight, and
    can come back. (The published selectors gate by rank in the micro-batch; here it is rank in the pool.)

    Args:
        form: softmax ranks rows against each other; with sigmoid and no value function every weight falls to zero,
            since all losses are positive.
        floor: smallest weight, in [0, 1).
        keep_share: share of the pool that trains, in (0, 1].
        by: what has a logit: a row, a question whose answers share one (`question_id`), a source. How many there are
            comes with the sizes at `init`.

    Raises:
        ValueError: for a floor or share outside these ranges; at `init`, where sizes does not say how many there are.

    References:
        Shen et al., SEAL, ICLR 2025; Xiao & Chen, arXiv 2511.21056 (BDS).
    """
    check_ranges(
        {"floor": floor, "keep_share": keep_share},
        ("floor", 0 <= floor < 1, "in [0, 1)"),
        ("keep_share", 0 < keep_share <= 1, "in (0, 1]"),
    )

    def init(key: Array, sizes: Sizes) -> tuple[Float[Array, " pool"], tuple[()]]:
        return jnp.zeros(size_of("row_logits", by, sizes)), ()

    def weights(
        logits: Float[Array, " pool"], memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        table = pool_weights(logits, form, floor)
        kept = max(1, round(keep_share * logits.size))
        if kept < logits.size:
            threshold = jax.lax.top_k(jax.lax.stop_gradient(logits), kept)[0][-1]
            gated = jnp.where(logits >= threshold, table, 0.0)
            table = table + jax.lax.stop_gradient(gated - table)
        ids = named_ids(batch, by)
        return jnp.where(ids >= 0, table[ids], 0.0)

    def centred(logits: Float[Array, " pool"]) -> Float[Array, " pool"]:
        # A softmax forgets a common shift; at this one a logit of zero is the mean weight.
        return logits - (jax.nn.logsumexp(logits) - jnp.log(logits.size)).astype(logits.dtype)

    return Weighting(init, weights, tables=(by, ""), centred=centred if form == "softmax" else as_it_is)


def pool_weights(
    logits: Float[Array, " pool"], form: Form = "softmax", floor: float = 0.0
) -> Float[Array, " pool"]:
    """The weights of the whole pool before any gate; their mean is one under softmax."""
    shares = logits.size * jax.nn.softmax(logits) if form == "softmax" else 2 * jax.nn.sigmoid(logits)
    return floor + (1 - floor) * shares
