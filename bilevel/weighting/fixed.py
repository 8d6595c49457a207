"""Weights that nothing makes: uniform, a given table (oracles, snapshots, another run's result), or themselves."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, Sizes, Weighting
from bilevel.weighting.indices import check_table


def uniform() -> Weighting:
    """Every row at weight one: ordinary fine-tuning."""

    def weights(
        outer: tuple[()], memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        return jnp.where(batch["row_id"] >= 0, 1.0, 0.0)

    return Weighting(lambda key, sizes: ((), ()), weights)


def given(table: Float[Array, " pool"]) -> Weighting:
    """Every row at the weight that a table says, indexed by `row_id`.

    Args:
        table: a weight for each row; it belongs to these rows, and is refused where there are more or fewer.
    """

    def init(key: Array, sizes: Sizes) -> tuple[tuple[()], tuple[()]]:
        check_table("given", len(table), sizes)
        return (), ()

    def weights(
        outer: tuple[()], memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        return jnp.where(batch["row_id"] >= 0, jnp.asarray(table)[batch["row_id"]], 0.0)

    return Weighting(init, weights)


def row_weights() -> Weighting:
    """The weights are the outer variables themselves, indexed by `row_id`: what a row's score is a derivative in."""

    def init(key: Array, sizes: Sizes) -> tuple[Float[Array, " pool"], tuple[()]]:
        return jnp.ones(sizes["row_id"]), ()

    def weights(
        table: Float[Array, " pool"], memory: tuple[()], batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        return jnp.where(batch["row_id"] >= 0, table[batch["row_id"]], 0.0)

    return Weighting(init, weights, tables=("row_id", ""))
