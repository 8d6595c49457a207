"""Scores of rows by a network that is not in training."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch
from bilevel.data import EncodedRows
from bilevel.errors import InputError
from bilevel.layout import Layout
from bilevel.storage.snapshots import Snapshot
from bilevel.weighting.network import relative_losses


def score_rows(
    snapshot: Snapshot,
    rows: EncodedRows,
    layout: Layout,
    batch_rows: int,
    seed: int = 0,
    row_losses: Callable[[Batch], RowLosses] | None = None,
) -> Float[np.ndarray, " rows"]:
    """Scores rows, higher being better.

    A network that reads each row alone gives a row the same score in any company, whatever the batch. One that reads
    relative losses compares each with those of all these rows. One with attention across rows compares the rows of a
    batch: it sees them in one random order, in batches of the size that it was trained with, the last completed by
    filler rows.

    Args:
        snapshot: the network.
        rows: what to score, in the tokens of the snapshot's tokenizer.
        layout: devices that share each batch.
        batch_rows: rows at a time, where that does not matter.
        seed: of the order, where it matters.
        row_losses: of a model, for a network that reads them.

    Raises:
        InputError: the network reads losses, and there is no model.
    """
    scorer = snapshot.info.network.scorer(snapshot.info.vocab_size)
    check_scores(snapshot, row_losses is not None)
    order = np.arange(len(rows))
    if scorer.joint:
        batch_rows = snapshot.info.batch_rows
        order = np.random.default_rng(seed).permutation(len(rows))
    batch_rows = layout.rounded(batch_rows)

    def by_batches(
        function: Callable[[Batch, Int[np.ndarray, " rows"]], Array],
    ) -> Float[np.ndarray, " rows"]:
        values = np.zeros(len(rows), np.float64)
        for start in range(0, len(rows), batch_rows):
            taken = order[start : start + batch_rows]
            ids = np.full(batch_rows, -1, np.int32)
            ids[: len(taken)] = taken
            values[taken] = layout.gather(function(layout.batch(rows, ids), ids))[: len(taken)]
        return values

    seen = np.zeros(len(rows))
    if scorer.losses != "none":
        assert row_losses is not None  # checked above
        means = jax.jit(lambda batch: row_losses(batch).means)
        seen = by_batches(lambda batch, ids: means(batch))
    if scorer.losses == "relative":
        seen = np.asarray(relative_losses(jnp.asarray(seen), jnp.ones(len(rows), bool)))
    parameters = jax.device_put(snapshot.parameters)

    @jax.jit
    def score(batch: Batch, losses: Float[Array, " rows"]) -> Float[Array, " rows"]:
        given = losses[None] if scorer.losses != "none" else None
        return scorer.scores(parameters, jax.tree.map(lambda x: x[None], dict(batch)), given)[0]

    return by_batches(lambda batch, ids: score(batch, np.float32(seen[ids])))


def check_scores(snapshot: Snapshot, with_losses: bool) -> None:
    """Checks that a network can score rows from what there is.

    Args:
        snapshot: the network.
        with_losses: whether there is a model whose losses it can read.

    Raises:
        InputError: the network reads losses, and there is no model.
    """
    if snapshot.info.network.scorer(snapshot.info.vocab_size).losses != "none" and not with_losses:
        raise InputError(
            f"{snapshot.folder}: its network reads a row's loss under a model; name one with --model, such as the one "
            "that its run left (--model RUN/model)"
        )
