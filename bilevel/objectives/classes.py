"""Losses of a classifier on rows that are no text: columns `x`, what it sees, and `y`, the right class."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree

Logits = Callable[[PyTree, Array], Float[Array, "rows classes"]]


def class_losses(logits: Logits, ridge: float = 0.0) -> Callable[[PyTree, Batch], RowLosses]:
    """Cross-entropies in nats, one a row.

    Args:
        logits: `(params, x) -> [rows, classes]`.
        ridge: half of it times the squared norm of the parameters is part of every row's loss, so that their weighted
            mean carries it once.

    Returns:
        `(params, batch) -> RowLosses`; a filler row counts for nothing.
    """

    def losses(params: PyTree, batch: Batch) -> RowLosses:
        return _losses(logits(params, batch["x"]), params, batch, ridge)

    return losses


def right_classes(
    logits: Logits, ridge: float = 0.0
) -> Callable[[PyTree, Batch], tuple[RowLosses, Bool[Array, " rows"]]]:
    """Cross-entropies, and whether the likeliest class is the right one; arguments as those of `class_losses`."""

    def evaluate(params: PyTree, batch: Batch) -> tuple[RowLosses, Array]:
        found = logits(params, batch["x"])
        return _losses(found, params, batch, ridge), jnp.argmax(found, axis=-1) == batch["y"]

    return evaluate


def _losses(found: Float[Array, "rows classes"], params: PyTree, batch: Batch, ridge: float) -> RowLosses:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(found), batch["y"][:, None], 1)[:, 0]
    penalty = 0.5 * ridge * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    count = (batch["row_id"] >= 0).astype(chosen.dtype)
    return RowLosses(count * (penalty - chosen), count)
