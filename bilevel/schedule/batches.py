"""Which rows a step sees: orders over row sets, cut into lower steps and micro-batches, placed on the devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from bilevel.core.problem import Batch
from bilevel.data import EncodedRows, RowOrder
from bilevel.runtime.devices import place_batch


@dataclass(frozen=True)
class BatchPlan:
    """How a step's batches are cut.

    Attributes:
        rows: rows of one lower batch, over all micro-batches and devices.
        upper_rows: the same of an upper batch; None means as many.
        accumulate: micro-batches that a batch is cut into.
        lower_steps: lower batches a solver step.
    """

    rows: int = 32
    upper_rows: int | None = None
    accumulate: int = 1
    lower_steps: int = 1

    def __post_init__(self) -> None:
        for name, rows in (("batch", self.rows), ("upper batch", self.upper_rows or self.rows)):
            if rows < 1 or self.accumulate < 1 or rows % self.accumulate:
                raise ValueError(
                    f"a {name} of {rows} rows cannot be cut into {self.accumulate} equal micro-batches"
                )
        if self.lower_steps < 1:
            raise ValueError(f"lower_steps must be at least 1, not {self.lower_steps}")


class LowerBatches:
    """Lower batches by solver step: arrays [lower steps, micro-batches, ...], drawn without replacement."""

    def __init__(
        self, rows: EncodedRows, ids: np.ndarray, plan: BatchPlan, seed: int, mesh: jax.sharding.Mesh
    ):
        self._rows, self._ids, self._plan, self._mesh = rows, ids, plan, mesh
        self._order = RowOrder(len(ids), plan.rows, seed)

    def __call__(self, step: int) -> Batch:
        steps = self._plan.lower_steps
        batches = [
            _cut(self._rows.batch(self._ids[self._order.indices(step * steps + k)]), self._plan.accumulate)
            for k in range(steps)
        ]
        return place_batch(
            {name: np.stack([b[name] for b in batches]) for name in batches[0]}, self._mesh, axis=2
        )


class UpperBatches:
    """Upper batches by solver step: arrays [micro-batches, ...]."""

    def __init__(self, rows: EncodedRows, plan: BatchPlan, seed: int, mesh: jax.sharding.Mesh):
        self._rows, self._plan, self._mesh = rows, plan, mesh
        self._order = RowOrder(len(rows), plan.upper_rows or plan.rows, seed)

    def __call__(self, step: int) -> Batch:
        return place_batch(
            _cut(self._rows.batch(self._order.indices(step)), self._plan.accumulate), self._mesh, axis=1
        )


def in_turn(rows: EncodedRows, size: int, mesh: jax.sharding.Mesh) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields `(row ids, batch)` over all rows in order; the last batch is completed by filler rows, id -1."""
    for start in range(0, len(rows), size):
        ids = np.full(size, -1, np.int32)
        taken = np.arange(start, min(start + size, len(rows)))
        ids[: len(taken)] = taken
        yield ids, place_batch(rows.batch(ids), mesh, axis=0)


def _cut(batch: Batch, pieces: int) -> Batch:
    return {name: np.reshape(value, (pieces, -1, *value.shape[1:])) for name, value in batch.items()}
