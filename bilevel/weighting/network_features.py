"""Scorers of a few numbers a row: a network of its loss, and a linear map of chosen signals."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.weighting.network import Scorer
from bilevel.weighting.network_signals import standardised

_KINKS = {"absolute": (0.0, 4.0), "relative": (-2.0, 3.0)}
"""Where a loss scorer's kinks begin and end, in nats a token or in deviations."""


def loss_scorer(losses: Literal["absolute", "relative"] = "absolute", hidden: int = 100) -> Scorer:
    """A network of one feature, a row's present loss, through one hidden layer to its score.

        s_i = < head, relu(sign * l_i + bias) >,    l_i the row's loss with the gradient stopped

    Of the `absolute` loss it is Meta-Weight-Net, whose published network ends in a sigmoid; here the batch's shares
    take its place. What it learns of a loss holds for a while only, since losses fall as the model learns. The loss
    `relative` to the batch keeps its meaning. Either way the network cannot tell a hard row from a faulty one of the
    same loss.

    Kinks lie evenly, and coarse near no loss at all, so that rows which are learned score alike.

    Args:
        losses: the form in which it reads them.
        hidden: units of the hidden layer (published: 100).

    References:
        Shu et al., Meta-Weight-Net, NeurIPS 2019 (arXiv 1902.07379).
    """
    lowest, highest = _KINKS[losses]

    def init(key: Array) -> PyTree:
        sign, kink = jax.random.split(key)
        signs = jnp.where(jax.random.bernoulli(sign, shape=(hidden,)), 1.0, -1.0)
        kinks = jax.random.uniform(kink, (hidden,), minval=lowest, maxval=highest)
        return {"sign": signs, "bias": -signs * kinks, "head": jnp.zeros(hidden)}

    def scores(
        parameters: PyTree, batch: Batch, losses: Float[Array, "micro rows"] | None
    ) -> Float[Array, "micro rows"]:
        assert losses is not None  # declared by the form
        units = jax.nn.relu(losses[..., None] * parameters["sign"] + parameters["bias"])
        return (units @ parameters["head"]).astype(losses.dtype)

    return Scorer(init, scores, losses)


def signal_scorer(signals: Float[Array, "pool signals"]) -> Scorer:
    """A linear score of signals, columns that were measured for every row of the pool.

        s_i = < coefficients, (x_i - mean) / deviation >

    Columns are standardised over the pool; one without spread says nothing. A row without a value (nan) stands at
    the mean.

    Args:
        signals: by `row_id`: a run's columns of loss, length, similarity and so on. They belong to these rows; a
            network of them is refused where there are more or fewer.
    """
    present = jnp.isfinite(signals)
    table = standardised(jnp.where(present, signals, 0.0), present, (0,))

    def init(key: Array) -> PyTree:
        return jnp.zeros(table.shape[1])

    def scores(
        coefficients: PyTree, batch: Batch, losses: Float[Array, "micro rows"] | None
    ) -> Float[Array, "micro rows"]:
        return table[jnp.maximum(batch["row_id"], 0)] @ coefficients

    return Scorer(init, scores, sizes={"row_id": len(signals)})
