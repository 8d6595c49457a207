"""Tables by row, question or source: how many entries there must be, and which a batch names."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel.core.problem import Batch, Sizes


def size_of(what: str, by: str, sizes: Sizes) -> int:
    """How many an index counts.

    Args:
        what: asks, in words.
        by: the index's name.
        sizes: as a solver's `init` was given them.

    Raises:
        ValueError: where sizes says nothing of it, or that there are none.
    """
    if by not in sizes:
        raise ValueError(
            f"{what}: needs to know how many there are by {by!r}: pass sizes={{{by!r}: ...}} to the solver's init"
        )
    if sizes[by] < 1:
        raise ValueError(f"{what}: needs at least one by {by!r}, not {sizes[by]}")
    return sizes[by]


def check_table(what: str, length: int, sizes: Sizes, by: str = "row_id") -> None:
    """Refuses a table that does not fit the rows.

    Raises:
        ValueError: for another length, where rows would share the table's last entry in silence.
    """
    rows = size_of(what, by, sizes)
    if rows != length:
        raise ValueError(f"{what}: a table of {length} does not fit the {rows} that there are by {by!r}")


def named_ids(batch: Batch, by: str) -> Int[Array, "*rows"]:
    """For each row of a batch the entry of a table, -1 for filler rows."""
    ids = jnp.asarray(batch[by])
    return ids if by == "row_id" else jnp.where(jnp.asarray(batch["row_id"]) >= 0, ids, -1)
