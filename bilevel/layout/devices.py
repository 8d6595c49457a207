"""Data parallelism: a mesh with one axis, batches split along it, everything else on every device.

Functions stay as they are: under `jax.jit`, placing the batch is all that it takes: a sum over rows becomes a
sum over devices.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bilevel.errors import InputError

AXIS = "data"

Tree = TypeVar("Tree")


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis "data".

    Args:
        devices: what to spread over, by default every device of this process.

    Returns:
        The mesh; its axis is automatic, so that jit finds the shardings between inputs and outputs itself.
    """
    chosen = jax.local_devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def place_batch(batch: Mapping[str, Any], mesh: Mesh, axis: int = 0) -> dict[str, jax.Array]:
    """Splits a batch over the mesh.

    Args:
        batch: arrays whose axis `axis` counts rows or sequences.
        mesh: from `data_mesh`.
        axis: the axis to split; the ones before it (lower step, micro-batch) stay whole.

    Returns:
        The batch on the devices, the first rows on the first of them.

    Raises:
        InputError: the mesh cannot divide the batch.
    """
    count = mesh.shape[AXIS]
    for name, array in batch.items():
        rows = np.shape(array)[axis]
        if rows % count:
            fitting = max(n for n in range(1, count + 1) if rows % n == 0)
            raise InputError(
                f"a batch of {rows} rows ({name!r}) cannot be divided over {count} devices; "
                f"use a multiple of {count} rows, or {fitting} of the devices"
            )
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))
    return {name: jax.device_put(array, sharding) for name, array in batch.items()}


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Puts a copy of every array of the tree on each device of the mesh; what is split over the mesh stays split."""
    whole = NamedSharding(mesh, PartitionSpec())

    def place(array: Any) -> NamedSharding:
        placed = getattr(array, "sharding", None)
        return placed if isinstance(placed, NamedSharding) and placed.mesh == mesh else whole

    return jax.device_put(tree, jax.tree.map(place, tree))
