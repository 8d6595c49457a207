"""One place that knows devices and processes: every batch, gather and joint decision passes through a `Layout`.

Functions stay as they are: under `jax.jit`, placing the batch is all that it takes: a sum over rows becomes a sum over
devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilevel.data import Dataset
from bilevel.errors import InputError

AXIS = "data"

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Layout:
    """A mesh, and how arrays lie on it: batches split along some of its axes, everything else whole on each device.

    Arrays that are split over the mesh already (the parameters of a model under `models.load(..., mesh=)`) stay as they
    are, and what is made from them (moments, second copies) follows them.

    Attributes:
        mesh: the devices. Its axes are automatic, so that jit finds the shardings between inputs and outputs itself.
        batch_axes: axes of the mesh that share a batch's rows.
    """

    mesh: Mesh
    batch_axes: tuple[str, ...] = (AXIS,)

    @property
    def shares(self) -> int:
        """In how many parts a batch is split: what its rows must be a multiple of."""
        return prod(self.mesh.shape[axis] for axis in self.batch_axes)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes what is written once."""
        return jax.process_index() == 0

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return jax.process_count() == 1

    @property
    def whole(self) -> NamedSharding:
        """Where an array lies of which each device holds all."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Where an array goes whose first axis counts rows."""
        return NamedSharding(self.mesh, PartitionSpec(self.batch_axes))

    def rounded(self, rows: int) -> int:
        """The least multiple of the shares that is not below a number of rows."""
        return -(-rows // self.shares) * self.shares

    def batch(self, dataset: Dataset, ids: np.ndarray) -> dict[str, jax.Array]:
        """The batch of some rows of a data set, split over the devices along its rows (or packed sequences).

        Args:
            dataset: the rows.
            ids: which; -1 for filler rows. Axes before the last (lower step, micro-batch) stay whole.

        Raises:
            InputError: the mesh cannot divide the batch.
        """
        return self.split(dataset.batch(ids), np.ndim(ids) - 1)

    def split(self, batch: Mapping[str, Any], axis: int = 0) -> dict[str, jax.Array]:
        """The arrays of a batch on the devices, the first rows on the first of them.

        Args:
            batch: arrays whose axis `axis` counts rows or sequences.
            axis: the axis to split; the ones before it stay whole.

        Raises:
            InputError: the mesh cannot divide the batch.
        """
        count = self.shares
        for name, array in batch.items():
            rows = np.shape(array)[axis]
            if rows % count:
                fitting = max(n for n in range(1, count + 1) if rows % n == 0)
                raise InputError(
                    f"a batch of {rows} rows ({name!r}) cannot be divided over {count} devices; "
                    f"use a multiple of {count} rows, or {fitting} of the devices"
                )
        sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.batch_axes))
        return {name: jax.device_put(array, sharding) for name, array in batch.items()}

    def replicate(self, tree: Tree) -> Tree:
        """The tree with a copy of every array on each device; what is split over the mesh stays split."""
        return jax.device_put(tree, self.shardings(tree))

    def shardings(self, tree: Any) -> Any:
        """Where each array of a tree lies, or its shape says it should; whole on each device where nothing is said."""

        def place(array: Any) -> NamedSharding:
            placed = getattr(array, "sharding", None)
            return placed if isinstance(placed, NamedSharding) and placed.mesh == self.mesh else self.whole

        return jax.tree.map(place, tree)

    def stored(self, name: str, shape: tuple[int, ...], axes: Sequence[Any]) -> NamedSharding:
        """Where a stored array goes: split as it was, over the axes that this mesh has, too, and that divide it.

        Args:
            name: the array's.
            shape: its shape.
            axes: the axes of the mesh that it was stored from, for each of its own.
        """
        kept: list[tuple[str, ...] | None] = []
        for size, over in zip(shape, axes, strict=False):
            names = (over,) if isinstance(over, str) else tuple(over or ())
            found = tuple(axis for axis in names if axis in self.mesh.shape)
            kept.append(
                found if found and size % prod(self.mesh.shape[axis] for axis in found) == 0 else None
            )
        return NamedSharding(self.mesh, PartitionSpec(*kept))

    def gather(self, tree: Any) -> Any:
        """The values of arrays as NumPy's, all of them in every process."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)

    def agree(self, value: bool) -> bool:
        """What all processes do together: what the first of them says."""
        return bool(self.told(np.asarray(value)))

    def told(self, values: np.ndarray) -> np.ndarray:
        """An array as the first process has it, in all of them, which give one of its shape."""
        if jax.process_count() == 1:
            return values
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.broadcast_one_to_all(values))


def data_layout(devices: Sequence[jax.Device] | None = None) -> Layout:
    """Data parallelism: a mesh with the one axis "data".

    Args:
        devices: what to spread over, by default every device.
    """
    chosen = jax.devices() if devices is None else list(devices)
    return Layout(jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen))
