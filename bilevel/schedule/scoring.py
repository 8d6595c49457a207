"""Scores of rows by a network that is not in training."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.data import EncodedRows
from bilevel.errors import InputError
from bilevel.runtime.devices import place_batch
from bilevel.runtime.snapshots import Snapshot


def score_rows(
    snapshot: Snapshot,
    rows: EncodedRows,
    mesh: jax.sharding.Mesh,
    batch_rows: int,
    seed: int = 0,
    row_losses: Callable[[Batch], RowLosses] | None = None,
) -> Float[np.ndarray, " rows"]:
    """Scores rows, higher being better.

    A network that reads each row alone gives a row the same score in any company, whatever the batch. One with
    attention across rows compares the rows of a batch: it sees them in one random order, in batches of the size that it
    was trained with, the last completed by filler rows.

    Args:
        snapshot: the network.
        rows: what to score, in the tokens of the snapshot's tokenizer.
        mesh: devices that share each batch.
        batch_rows: rows at a time, where that does not matter.
        seed: of the order, where it matters.
        row_losses: of a model, for a network that reads them.

    Raises:
        InputError: the network reads losses, and there is no model.
    """
    scorer = snapshot.info.network.scorer(snapshot.info.vocab_size)
    check_scores(snapshot, row_losses is not None)

    def score(parameters: PyTree, batch: Batch) -> Float[Array, " rows"]:
        losses = row_losses(batch) if scorer.needs_losses and row_losses is not None else None
        return scorer.scores(parameters, *jax.tree.map(lambda x: x[None], (batch, losses)))[0]

    compiled = jax.jit(score)
    order = np.arange(len(rows))
    devices = mesh.devices.size
    if scorer.joint:
        batch_rows = snapshot.info.batch_rows
        order = np.random.default_rng(seed).permutation(len(rows))
    batch_rows = -(-batch_rows // devices) * devices
    parameters = jax.device_put(snapshot.parameters)
    scores = np.zeros(len(rows), np.float64)
    for start in range(0, len(rows), batch_rows):
        taken = order[start : start + batch_rows]
        ids = np.full(batch_rows, -1, np.int32)
        ids[: len(taken)] = taken
        found = compiled(parameters, place_batch(rows.batch(ids), mesh))
        scores[taken] = np.asarray(found)[: len(taken)]
    return scores


def check_scores(snapshot: Snapshot, with_losses: bool) -> None:
    """Checks that a network can score rows from what there is.

    Args:
        snapshot: the network.
        with_losses: whether there is a model whose losses it can read.

    Raises:
        InputError: the network reads losses, and there is no model.
    """
    if snapshot.info.network.scorer(snapshot.info.vocab_size).needs_losses and not with_losses:
        raise InputError(
            f"{snapshot.folder}: its network reads a row's loss under a model; name one with --model, such as the one "
            "that its run left (--model RUN/model)"
        )
