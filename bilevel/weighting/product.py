"""Products of weightings: BDS times BMO times a network is one weighting with three outer parts."""

from __future__ import annotations

from functools import reduce

import jax
from jaxtyping import Array, Float

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, Weighting
from bilevel.core.tree import PyTree


def product(**parts: Weighting) -> Weighting:
    """w_i = product over parts of their w_i.

    Outer variables and memory are dicts by part name, so that `optax.multi_transform` (or `optax.partition`) gives
    each part an optimizer of its own, and vjp gives each its gradient.

    Args:
        **parts: weightings by name.

    Raises:
        ValueError: without parts.
    """
    if not parts:
        raise ValueError("product: needs at least one weighting")

    def init(key: Array) -> tuple[PyTree, PyTree]:
        begun = {
            name: part.init(jax.random.fold_in(key, position))
            for position, (name, part) in enumerate(parts.items())
        }
        return {name: outer for name, (outer, _) in begun.items()}, {
            name: memory for name, (_, memory) in begun.items()
        }

    def weights(
        outer: PyTree, memory: PyTree, batch: Batch, losses: RowLosses | None
    ) -> Float[Array, "*rows"]:
        factors = [part.weights(outer[name], memory[name], batch, losses) for name, part in parts.items()]
        return reduce(lambda left, right: left * right, factors)

    def update(memory: PyTree, batch: Batch, losses: RowLosses) -> PyTree:
        return {name: part.update(memory[name], batch, losses) for name, part in parts.items()}

    return Weighting(init, weights, update, any(part.needs_losses for part in parts.values()))
