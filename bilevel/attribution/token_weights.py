"""The same training with a weight for each response token: what is scored is a token of a row instead of the row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.attribution.retraining import Retraining
from bilevel.core import Mean, Problem, RowLosses
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.data import EncodedRows
from bilevel.errors import InputError
from bilevel.objectives.sft import sum_by_row


def token_problem(retraining: Retraining) -> tuple[Problem, jax.Array]:
    """The problem whose outer variables are the weights of all tokens, [pool, tokens], and these weights.

    A row's loss is the mean over its response tokens of v_it l_it, with v_it = w_i to begin with: the scores of a row's
    tokens add up to the row's.

    Args:
        retraining: the training.

    Raises:
        InputError: the rows are no text, or several of them share a sequence.
    """
    given = retraining
    scores = given.model.token_scores
    if scores is None or not isinstance(given.pool, EncodedRows):
        raise InputError("--tokens: these rows are no text, or the model says nothing of single tokens")
    if "token_row" in given.run.batches(0, 1):
        raise InputError(
            "--tokens: rows share sequences in this run; tokens are scored of runs with packing off"
        )

    def lower(table: PyTree, inner: PyTree, batch: Batch) -> Mean:
        known = batch["row_id"] >= 0
        weights = jnp.where(known[:, None], table[batch["row_id"]], 0.0)
        weighted = jnp.where(batch["loss_mask"], weights * scores(inner, batch).loss, 0.0)
        count = sum_by_row(batch["loss_mask"].astype(weighted.dtype), batch)
        return RowLosses(sum_by_row(weighted, batch), count).weighted(reduction=given.problem.reduction)

    length = given.pool.batch(np.arange(1))["tokens"].shape[-1]
    table = jnp.broadcast_to(given.table[:, None], (len(given.pool), length))
    return Problem(lower, given.problem.upper), given.layout.replicate(table)
