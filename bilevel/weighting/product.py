"""Products of weightings: BDS times BMO times a network is one weighting with three outer parts."""

from __future__ import annotations

import zlib
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, Seen, Sizes, Weighting
from bilevel.core.tree import PyTree


def product(**parts: Weighting) -> Weighting:
    """w_i = product over parts of their w_i.

    Outer variables and memory are dicts by part name, so that `by_part` gives each part an optimizer of its own, and
    vjp gives each its gradient. A part begins alike whatever stands beside it: its key is made from its name.

    Args:
        **parts: weightings by name.

    Raises:
        ValueError: without parts.
    """
    if not parts:
        raise ValueError("product: needs at least one weighting")

    def init(key: Array, sizes: Sizes) -> tuple[PyTree, PyTree]:
        begun = {
            name: part.init(jax.random.fold_in(key, zlib.crc32(name.encode())), sizes)
            for name, part in parts.items()
        }
        return {name: outer for name, (outer, _) in begun.items()}, {
            name: memory for name, (_, memory) in begun.items()
        }

    def factors(
        outer: PyTree, memory: PyTree, batch: Batch, losses: RowLosses | None
    ) -> dict[str, Float[Array, "*rows"]]:
        return {
            name: part.weights(outer[name], memory[name], batch, losses if part.needs_losses else None)
            for name, part in parts.items()
        }

    def weights(
        outer: PyTree, memory: PyTree, batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        return reduce(jnp.multiply, factors(outer, memory, batch, losses).values())

    def update(memory: PyTree, seen: Seen) -> PyTree:
        return {name: part.update(memory[name], seen) for name, part in parts.items()}

    def centred(outer: PyTree) -> PyTree:
        return {name: part.centred(outer[name]) for name, part in parts.items()}

    return Weighting(
        init=init,
        weights=weights,
        update=update,
        needs_losses=any(part.needs_losses for part in parts.values()),
        tables=(
            {name: part.tables[0] for name, part in parts.items()},
            {name: part.tables[1] for name, part in parts.items()},
        ),
        centred=centred,
        factors=factors,
    )
