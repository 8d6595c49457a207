"""Scorers of a few numbers a row: a network of its loss, and a linear map of chosen signals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.weighting.network import Scorer

_LARGEST_LOSS = 4.0


def loss_scorer(hidden: int = 100) -> Scorer:
    """The one-feature network of Meta-Weight-Net: a row's present loss, through one hidden layer, to its score.

        s_i = < head, relu(sign * l_i + bias) >,    l_i the row's mean token loss with the gradient stopped

    Where the network sends a high loss is learned, so it can prefer easy rows at one time and hard ones at another; it
    cannot tell a hard row from a faulty one of the same loss. The published network ends in a sigmoid; here the
    batch's shares take its place. Kinks lie evenly over losses from 0 to 4 nats a token and stay coarse near 0, so
    that rows which are learned score alike.

    Args:
        hidden: units of the hidden layer (published: 100).

    References:
        Shu et al., Meta-Weight-Net, NeurIPS 2019 (arXiv 1902.07379).
    """

    def init(key: Array) -> PyTree:
        sign, kink = jax.random.split(key)
        signs = jnp.where(jax.random.bernoulli(sign, shape=(hidden,)), 1.0, -1.0)
        kinks = jax.random.uniform(kink, (hidden,), maxval=_LARGEST_LOSS)
        return {"sign": signs, "bias": -signs * kinks, "head": jnp.zeros(hidden)}

    def scores(parameters: PyTree, batch: Batch, losses: RowLosses | None) -> Float[Array, "micro rows"]:
        assert losses is not None  # declared by needs_losses
        units = jax.nn.relu(losses.means[..., None] * parameters["sign"] + parameters["bias"])
        return (units @ parameters["head"]).astype(losses.means.dtype)

    return Scorer(init, scores, needs_losses=True)


def signal_scorer(signals: Float[Array, "pool signals"]) -> Scorer:
    """A linear score of signals, columns that were measured for every row of the pool.

        s_i = < coefficients, (x_i - mean) / deviation >

    Columns are standardised over the pool; one without spread says nothing. A row without a value (nan) stands at
    the mean.

    Args:
        signals: by `row_id`: a run's columns of loss, length, similarity and so on.
    """
    present = jnp.isfinite(signals)
    count = jnp.maximum(jnp.sum(present, axis=0), 1)
    values = jnp.where(present, signals, 0.0)
    mean = jnp.sum(values, axis=0) / count
    deviation = jnp.sqrt(jnp.sum(jnp.where(present, (signals - mean) ** 2, 0.0), axis=0) / count)
    table = jnp.where(
        present & (deviation > 0), (values - mean) / jnp.where(deviation > 0, deviation, 1.0), 0.0
    )

    def init(key: Array) -> PyTree:
        return jnp.zeros(table.shape[1])

    def scores(coefficients: PyTree, batch: Batch, losses: RowLosses | None) -> Float[Array, "micro rows"]:
        return table[jnp.maximum(batch["row_id"], 0)] @ coefficients

    return Scorer(init, scores)
