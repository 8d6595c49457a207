"""Weights that nothing moves: uniform, or a given table (oracles, snapshots, another run's result)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, Weighting


def uniform() -> Weighting:
    """Every row at weight one: ordinary fine-tuning."""

    def weights(
        outer: tuple[()], memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        return jnp.where(batch["row_id"] >= 0, 1.0, 0.0)

    return Weighting(lambda key: ((), ()), weights, lambda memory, batch, losses: memory)


def given(table: Float[Array, " pool"]) -> Weighting:
    """Every row at the weight that a table says, indexed by `row_id`."""

    def weights(
        outer: tuple[()], memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        return jnp.where(batch["row_id"] >= 0, jnp.asarray(table)[batch["row_id"]], 0.0)

    return Weighting(lambda key: ((), ()), weights, lambda memory, batch, losses: memory)
