"""Which rows a step sees: orders over row sets, cut into lower steps and micro-batches, placed on the devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np

from bilevel.core.problem import Batch
from bilevel.data import EncodedRows, PackedRows, Packing, RowOrder, arrange_rows
from bilevel.layout.devices import place_batch

_PLANNED_BATCHES = 2048
"""Batches that packing looks at; among later ones hardly any is fuller than all of these."""


@dataclass(frozen=True)
class BatchPlan:
    """How a step's batches are cut.

    Attributes:
        rows: rows of one lower batch, over all micro-batches and devices.
        upper_rows: the same of an upper batch; None means as many.
        accumulate: micro-batches that a batch is cut into.
        lower_steps: lower batches a solver step.
        packing: whether several rows share a sequence; row losses must then read `token_row`, as
            `bilevel.objectives` does.
        upper_packing: the same of upper batches; None means as `packing`.
    """

    rows: int = 32
    upper_rows: int | None = None
    accumulate: int = 1
    lower_steps: int = 1
    packing: Packing = "off"
    upper_packing: Packing | None = None

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
        self._ids, self._plan, self._mesh = ids, plan, mesh
        self._order = RowOrder(len(ids), plan.rows, seed)
        pieces = (plan.lower_steps, plan.accumulate)
        # Lower batches alone have two sizes: with two of upper ones, too, a step would be compiled four times.
        self.rows = _arranged(rows, ids.tobytes(), self._order, pieces, plan.packing, mesh.size, True)
        """Packed or padded."""

    def __call__(self, step: int) -> Batch:
        steps = self._plan.lower_steps
        drawn = [self._order.indices(step * steps + k) for k in range(steps)]
        indices = self._ids[np.reshape(drawn, (steps, self._plan.accumulate, -1))]
        return place_batch(self.rows.batch(indices), self._mesh, axis=2)


class UpperBatches:
    """Upper batches by solver step: arrays [micro-batches, ...]."""

    def __init__(self, rows: EncodedRows, plan: BatchPlan, seed: int, mesh: jax.sharding.Mesh):
        self._plan, self._mesh = plan, mesh
        self._order = RowOrder(len(rows), plan.upper_rows or plan.rows, seed)
        every = np.arange(len(rows)).tobytes()
        packing = plan.upper_packing or plan.packing
        self.rows = _arranged(rows, every, self._order, (1, plan.accumulate), packing, mesh.size)
        """Packed or padded."""

    def __call__(self, step: int) -> Batch:
        indices = np.reshape(self._order.indices(step), (self._plan.accumulate, -1))
        return place_batch(self.rows.batch(indices), self._mesh, axis=1)


def in_turn(
    rows: EncodedRows, size: int, mesh: jax.sharding.Mesh, packing: Packing = "off"
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields `(row ids, batch)` over all rows in order; the last batch is completed by filler rows, id -1."""
    ids = np.full(-(-len(rows) // size) * size, -1, np.int32)
    ids[: len(rows)] = np.arange(len(rows))
    batches = ids.reshape(-1, size)
    arranged = arrange_rows(rows, batches, packing, mesh.size)
    for chosen in batches:
        yield chosen, place_batch(arranged.batch(chosen), mesh, axis=0)


def first_rows(rows: EncodedRows, size: int, mesh: jax.sharding.Mesh, packing: Packing = "off") -> Batch:
    """Returns one batch of the first rows, completed by filler rows."""
    ids = np.where(np.arange(size) < len(rows), np.arange(size), -1)
    return place_batch(arrange_rows(rows, ids[None], packing, mesh.size).batch(ids), mesh)


def packing_notice(
    pool: EncodedRows, trusted: EncodedRows, plan: BatchPlan, seed: int, mesh: jax.sharding.Mesh
) -> str:
    """Returns a line for the user on how batches are packed, "" where nobody asked for it.

    Args:
        pool: rows of the lower level.
        trusted: rows of the upper level.
        plan: how batches are cut.
        seed: the run's.
        mesh: devices that share each batch's rows.
    """
    if plan.packing == "off" and plan.upper_packing in (None, "off"):
        return ""
    lower = LowerBatches(pool, np.arange(len(pool)), plan, 2 * seed, mesh).rows
    upper = UpperBatches(trusted, plan, 2 * seed + 1, mesh).rows
    said = []
    for name, rows, size in (("lower", lower, plan.rows), ("upper", upper, plan.upper_rows or plan.rows)):
        size //= plan.accumulate
        if isinstance(rows, PackedRows):
            sizes = " or ".join(map(str, rows.sizes))
            said.append(
                f"{name} batches of {size} rows in {sizes} sequences ({rows.share:.0%} of the tokens)"
            )
        else:
            said.append(f"{name} batches padded")
    return f"packing: {', '.join(said)}"


@lru_cache(maxsize=4)
def _arranged(
    rows: EncodedRows,
    ids: bytes,
    order: RowOrder,
    pieces: tuple[int, int],
    packing: Packing,
    devices: int,
    two_sizes: bool = False,
) -> EncodedRows | PackedRows:
    """Packs for the first batches of an order, whatever part of a run this is: a resumed one sees the same sizes.

    Remembered, because every method of a run and every stage of a method asks for the same.
    """
    if packing == "off":
        return rows
    steps = -(-_PLANNED_BATCHES // pieces[0])
    drawn = [order.indices(number) for number in range(steps * pieces[0])]
    batches = np.frombuffer(ids, np.int64)[np.reshape(drawn, (steps, *pieces, -1))]
    return arrange_rows(rows, batches, packing, devices, two_sizes)
