"""Supervised fine-tuning losses: token scores of a model become row losses, row losses an upper objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel.core.losses import Mean, Reduction, RowLosses
from bilevel.core.problem import Batch, OutputLoss
from bilevel.core.tree import PyTree, widened
from bilevel.objectives.token_scores import scores_of_logits

Scores = Callable[[PyTree, Batch], Any]
"""`(params, batch) -> scores`, whose `loss` and `correct` are shaped as a `TokenScores`' are."""


def response_losses(token_scores: Scores) -> Callable[[PyTree, Batch], RowLosses]:
    """The row loss `(params, batch) -> RowLosses`: negative log-likelihoods of responses with their end tokens.

    Args:
        token_scores: `(params, batch) -> scores` with `scores.loss` [sequences, tokens], in nats.
    """

    def row_losses(params: PyTree, batch: Batch) -> RowLosses:
        return _of_responses(token_scores(params, batch).loss, batch)

    return row_losses


def response_losses_of_logits(
    logits: Callable[[PyTree, Batch], Float[Array, "sequences tokens vocabulary"]],
) -> OutputLoss:
    """The same `row_losses(params, batch)` with the logits as outputs, for Gauss-Newton products.

    It holds the logits of all positions at once.

    Args:
        logits: `(params, batch) -> [sequences, tokens, vocabulary]`, of the token after each.
    """
    return OutputLoss(
        logits, lambda logits, batch: _of_responses(scores_of_logits(logits, batch).loss, batch)
    )


def _of_responses(loss: Float[Array, "sequences tokens"], batch: Batch) -> RowLosses:
    mask = batch["loss_mask"].astype(loss.dtype)
    return RowLosses(sum_by_row(jnp.where(batch["loss_mask"], loss, 0.0), batch), sum_by_row(mask, batch))


def exact_matches(
    token_scores: Scores,
) -> Callable[[PyTree, Batch], tuple[RowLosses, Bool[Array, " rows"]]]:
    """The evaluation `(params, batch) -> (row losses, matches)`.

    A match is a row whose every response token, the end token included, is the argmax given the true tokens before
    it (teacher-forced).

    Args:
        token_scores: `(params, batch) -> scores` with `scores.loss` and `scores.correct` [sequences, tokens].
    """

    def evaluate(params: PyTree, batch: Batch) -> tuple[RowLosses, Bool[Array, " rows"]]:
        scores = token_scores(params, batch)
        count = sum_by_row(batch["loss_mask"].astype(scores.loss.dtype), batch)
        wrong = sum_by_row((batch["loss_mask"] & ~scores.correct).astype(scores.loss.dtype), batch)
        total = sum_by_row(jnp.where(batch["loss_mask"], scores.loss, 0.0), batch)
        return RowLosses(total, count), (wrong == 0) & (count > 0)

    return evaluate


def mean_loss(
    row_losses: Callable[[PyTree, Batch], RowLosses], reduction: Reduction = "row"
) -> Callable[[PyTree, PyTree, Batch], Mean]:
    """The upper objective of trusted rows: their mean loss, which no outer variable enters directly."""

    def upper(outer: PyTree, inner: PyTree, batch: Batch) -> Mean:
        return row_losses(inner, batch).weighted(reduction=reduction)

    return upper


def row_vectors(
    hidden: Callable[[PyTree, Batch], Float[Array, "sequences tokens width"]],
) -> Callable[[PyTree, Batch], Float[Array, "rows width"]]:
    """The embedding `(params, batch) -> [rows, width]`: the mean of a row's token vectors, in float32; 0 of fillers.

    Args:
        hidden: `(params, batch) -> [sequences, tokens, width]`, what a model knows at each token.
    """

    def embed(params: PyTree, batch: Batch) -> Float[Array, "rows width"]:
        vectors, inside = widened(hidden(params, batch)), batch["segments"] > 0
        total = sum_by_row(jnp.where(inside[..., None], vectors, 0.0), batch)
        count = sum_by_row(inside.astype(vectors.dtype), batch)
        return total / jnp.maximum(count, 1)[:, None]

    return embed


def sum_by_row(values: Float[Array, "sequences tokens *width"], batch: Batch) -> Float[Array, "rows *width"]:
    """Sums of token values over each row, in padded batches (a row a sequence) and packed ones."""
    if "token_row" not in batch:
        return jnp.sum(values, axis=1)
    rows = batch["row_id"].shape[0]
    slots = jnp.where(batch["token_row"] >= 0, batch["token_row"], rows)
    flat = values.reshape(-1, *values.shape[2:])
    return jax.ops.segment_sum(flat, slots.reshape(-1), num_segments=rows + 1)[:rows]
