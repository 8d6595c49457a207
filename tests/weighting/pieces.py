"""Small batches for weight networks, whole or in pieces, with losses that tell the rows apart."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core import RowLosses
from bilevel.data import EncodedRows, Row
from bilevel.weighting import (
    EncoderSettings,
    Scorer,
    added,
    encoder,
    loss_scorer,
    signal_scorer,
)

VOCABULARY, ROWS, LENGTH = 11, 8, 8
SIZES = {"row_id": ROWS}
SMALL = EncoderSettings(width=8, layers=1, heads=2, mlp_width=8)
SIGNALS = jnp.asarray(np.random.default_rng(3).normal(size=(ROWS, 3)))


def encoded() -> EncodedRows:
    """Rows of 3 to 8 tokens, the last two of each its response."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, LENGTH + 1, size=ROWS)
    places = np.arange(LENGTH)[None]
    real = places < lengths[:, None]
    rows = tuple(Row(f"row:{i}", "", "", "") for i in range(ROWS))
    tokens = np.where(real, rng.integers(1, VOCABULARY, (ROWS, LENGTH)), 0).astype(np.int32)
    return EncodedRows(rows, tokens, real.astype(np.int32), real & (places >= lengths[:, None] - 2))


POOL = encoded()
SCORERS = {
    "encoder": encoder(VOCABULARY, SMALL),
    "across rows": encoder(VOCABULARY, replace(SMALL, across_rows=1)),
    "loss": loss_scorer(hidden=6),
    "relative loss": loss_scorer("relative", 6),
    "signals": signal_scorer(SIGNALS),
    "sum": added(encoder(VOCABULARY, SMALL), loss_scorer("relative", 6)),
}


def in_pieces(ids, pieces: int = 1) -> dict:
    batch = POOL.batch(np.asarray(ids))
    return {name: jnp.reshape(value, (pieces, -1, *value.shape[1:])) for name, value in batch.items()}


def losses_of(batch) -> RowLosses:
    ids = batch["row_id"]
    return RowLosses(jnp.where(ids >= 0, 1.0 * ids, 0.0), jnp.where(ids >= 0, 2.0, 0.0))


def moved(scorer: Scorer):
    """Parameters away from the uniform start."""
    start = scorer.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )
