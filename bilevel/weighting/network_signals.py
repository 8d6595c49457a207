"""What a row's loss says to a weight network, and what a weight's derivative tells it to change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_LEAST_LOSS = 0.02
"""Nats a token: below it a row counts as learned, and its derivative is not magnified further."""

_MOST_DEVIATIONS = 3.0
"""At which relative losses are cut."""

_ROUNDINGS = 4
"""So many roundings of the largest value a mean may be off by."""

_LARGEST_TARGET = 1.0
"""Deviations at which targets are cut: derivatives have heavy tails, and a row counts by its sign above all."""


def relative_losses(
    losses: Float[Array, "*rows"], real: Bool[Array, "*rows"], axes: tuple[int, ...] | None = None
) -> Float[Array, "*rows"]:
    """Losses as deviations from their mean, (l_i - mean) / standard deviation, over the rows that compete.

    What a loss of 2 nats says changes as the model learns, and from one model to the next; that a row's loss is two
    deviations above those of its batch says the same throughout. Cut at 3 deviations: a pool as one batch has outliers
    that no batch of training can show, and scores would run straight on for them. Filler rows do not count.

    Args:
        losses: mean token losses.
        real: false for filler rows.
        axes: that rows of one scope lie along; None for all.
    """
    along = tuple(range(losses.ndim)) if axes is None else axes
    return jnp.clip(standardised(losses, real, along), -_MOST_DEVIATIONS, _MOST_DEVIATIONS)


def relative_to_losses(
    weights: Float[Array, "*rows"], real: Bool[Array, "*rows"], losses: Float[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """The same weights, their derivatives divided by the row's loss, in units of the batch's mean loss."""
    mean = mean_of_real(losses, real, tuple(range(losses.ndim)))
    scale = jax.lax.stop_gradient(mean / (losses + _LEAST_LOSS))
    fixed = jax.lax.stop_gradient(weights)
    return fixed + scale * (weights - fixed)


@jax.custom_vjp
def regressed(
    scores: Float[Array, "*rows"],
    weights: Float[Array, "*rows"],
    real: Bool[Array, "*rows"],
    losses: Float[Array, "*rows"],
) -> Float[Array, "*rows"]:
    """The weights as they are, with a derivative that makes scores regress on what rows are worth.

        worth_i = -a_i / l_i                         a_i: derivative of the upper loss in w_i,  l_i: loss of row i
        t_i = (worth_i - mean) / deviation           cut at one deviation
        pulled back to s_i: (s_i - mean of s - t_i) / rows,    the gradient of the mean squared distance

    Scores so tend to each row's expected worth, in deviations of one noisy measurement, among the rows that the
    network cannot tell apart. By a_i alone a row that is right and learned looks as worthless as a useless one, for its
    gradient is small; by its loss a gradient is small where the loss is. It is the step of mirror descent on the
    batch's shares (their derivative in the scores replaced by one) under a quadratic pull to equal scores, and no
    gradient of the upper level in the network's parameters: rows' ranks agree, magnitudes do not.

    Args:
        scores: of all rows of a batch.
        weights: made from them.
        real: false for filler rows, which have no say.
        losses: present mean token losses.

    References:
        Yu et al., MATES, NeurIPS 2024 (arXiv 2406.06046): a model that regresses on measured influence.
    """
    return weights


def _regressed_forward(
    scores: Array, weights: Array, real: Array, losses: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return weights, (scores, real, losses)


def _regressed_backward(
    kept: tuple[Array, Array, Array], derivative: Float[Array, "*rows"]
) -> tuple[Array, None, None, None]:
    scores, real, losses = kept
    axes = tuple(range(scores.ndim))
    worth = -derivative / (losses + _LEAST_LOSS)
    targets = jnp.clip(standardised(worth, real, axes), -_LARGEST_TARGET, _LARGEST_TARGET)
    gaps = jnp.where(real, scores - mean_of_real(scores, real, axes) - targets, 0.0)
    return (gaps / jnp.maximum(jnp.sum(real), 1)).astype(scores.dtype), None, None, None


regressed.defvjp(_regressed_forward, _regressed_backward)


def standardised(
    values: Float[Array, "*rows"], real: Bool[Array, "*rows"], axes: tuple[int, ...]
) -> Float[Array, "*rows"]:
    """Deviations from the mean over the real rows, in standard deviations; zero where all are the same.

    Values that differ by no more than the rounding of their mean are the same: their deviations would be noise.
    """
    present = jnp.where(real, values, 0.0)
    centred = jnp.where(real, values - mean_of_real(values, real, axes), 0.0)
    # Once more: of many rows the first mean is off by more than a rounding.
    centred = jnp.where(real, centred - mean_of_real(centred, real, axes), 0.0)
    deviation = jnp.sqrt(mean_of_real(centred**2, real, axes))
    size = jnp.max(jnp.abs(present), axis=axes, keepdims=True)
    apart = ~(deviation <= _ROUNDINGS * jnp.finfo(values.dtype).eps * size)  # NaN stays NaN
    return jnp.where(apart, centred / jnp.where(apart, deviation, 1.0), 0.0)


def mean_of_real(
    values: Float[Array, "*rows"], real: Bool[Array, "*rows"], axes: tuple[int, ...]
) -> Float[Array, "..."]:
    """The mean over the real rows of a scope, with its axes kept."""
    total = jnp.sum(jnp.where(real, values, 0.0), axis=axes, keepdims=True)
    return total / jnp.maximum(jnp.sum(real, axis=axes, keepdims=True), 1)
