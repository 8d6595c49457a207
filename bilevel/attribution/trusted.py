"""The upper level on all trusted rows: its value and derivative, of their mean or of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bilevel.attribution.retraining import Retraining
from bilevel.core import Compiled, Mean
from bilevel.core.accumulate import divide
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.core.unroll import Above
from bilevel.schedule.batches import in_turn


class Trusted:
    """The trusted rows as what a model is asked at the end of a training.

    Args:
        retraining: whose they are.
        outer: the outer variables, for an upper level that reads them.
    """

    def __init__(self, retraining: Retraining, outer: PyTree) -> None:
        self._retraining, self._outer = retraining, outer
        upper, losses = retraining.problem.upper, retraining.model.first_order

        def total(outer: PyTree, inner: PyTree, batch: Batch) -> tuple[Array, Array]:
            mean = upper(outer, inner, batch)
            return mean.total, jnp.asarray(mean.count)

        def value(inners: PyTree, batch: Batch) -> tuple[Mean, Float[Array, "models rows"]]:
            def one(inner: PyTree) -> tuple[Mean, Float[Array, " rows"]]:
                return Mean(*total(outer, inner, batch)), losses(inner, batch).means

            return jax.vmap(one)(inners)

        self._values = Compiled(value)
        self._gradient = Compiled(
            lambda outer, inner, batch: jax.value_and_grad(total, (0, 1), has_aux=True)(outer, inner, batch)
        )

    def __len__(self) -> int:
        return len(self._retraining.trusted)

    def _batches(self, size: int, ids: Sequence[int] | None = None) -> Iterator[tuple[np.ndarray, Batch]]:
        given = self._retraining
        chosen = None if ids is None else np.asarray(ids)
        return in_turn(given.trusted, size, given.layout, given.packing, chosen)

    def mean(self, inner: PyTree) -> Above:
        """The derivative of the mean over all trusted rows."""
        summed: Any = None
        for _, batch in self._batches(self._retraining.batch_rows):
            (_, count), gradients = self._gradient(self._outer, inner, batch)
            found = (count, gradients)
            summed = found if summed is None else optax.tree.add(summed, found)
        count, (outer, inner_gradient) = summed
        return Above(divide(outer, count), divide(inner_gradient, count))

    def each(self, inner: PyTree, ids: Sequence[int]) -> Above:
        """The derivative of some trusted rows' own losses, each along the first axis."""
        found = []
        for row in ids:
            # A batch that devices share cannot be smaller than they are many; the rest of it is filler rows.
            for _, batch in self._batches(self._retraining.layout.rounded(1), [row]):
                (_, count), gradients = self._gradient(self._outer, inner, batch)
                found.append(divide(gradients, count))
        return Above(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *found))

    def values(self, inners: PyTree) -> tuple[np.ndarray, np.ndarray]:
        """The upper level of several models, [models], and the trusted rows' own losses, [models, rows].

        Args:
            inners: inner variables with an axis of models before their own.
        """
        total: Any = None
        rows: list[np.ndarray] = []
        for ids, batch in self._batches(self._retraining.batch_rows):
            mean, losses = self._values(inners, batch)
            total = mean if total is None else total + mean
            rows.append(self._retraining.layout.gather(losses)[:, ids >= 0])
        mean = self._retraining.layout.gather(total)
        return np.asarray(mean.total / np.maximum(mean.count, 1)), np.concatenate(rows, axis=1)
