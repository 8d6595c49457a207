"""Arrays of every origin in a checkpoint: what Orbax stores of them, and what it takes to make them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

Axes = tuple[str | tuple[str, ...] | None, ...]
Place = Callable[[str, tuple[int, ...], Axes], Sharding]
"""From an array's name, shape, and the axes of the mesh that it was split over, to where it goes."""


def describe(array: Any) -> dict[str, Any]:
    """What it takes to make an array from its stored values, as JSON."""
    if not isinstance(array, jax.Array):
        values = np.asarray(array)
        return {"shape": list(values.shape), "dtype": values.dtype.name, "kind": "numpy"}
    described: dict[str, Any] = {"shape": list(array.shape), "kind": "jax"}
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        described["key"] = str(jax.random.key_impl(array))
        array = jax.random.key_data(array)
    described["dtype"] = array.dtype.name
    if isinstance(array.sharding, NamedSharding):
        described["axes"] = [list(axis) if isinstance(axis, tuple) else axis for axis in array.sharding.spec]
    elif len(array.sharding.device_set) > 1:
        described["axes"] = []
    return described


def as_stored(array: Any) -> Any:
    """An array as Orbax stores it: keys as their numbers."""
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(array) if is_key else array


def restore_arguments(name: str, described: Mapping[str, Any], place: Place) -> Any:
    """How Orbax is to read an array: where it is placed if it lay on several devices, else as NumPy's."""
    import orbax.checkpoint as ocp

    if "axes" not in described:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    axes = (tuple(axis) if isinstance(axis, list) else axis for axis in described["axes"])
    return ocp.ArrayRestoreArgs(sharding=place(name, tuple(described["shape"]), tuple(axes)))


def as_described(values: Any, described: Mapping[str, Any]) -> Any:
    """The array that was described; Orbax stores none without elements, for which `values` is None."""
    if values is None:
        values = np.zeros(described["shape"], described["dtype"])
    if described["kind"] == "numpy":
        return values
    # Without axes it lay on one device, bound to none: it may meet arrays on any.
    array = jax.numpy.asarray(values)
    return jax.random.wrap_key_data(array, impl=described["key"]) if "key" in described else array


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Names with "/" as nested dictionaries."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        inner = nested
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return nested


def flatten(nested: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Nested dictionaries by names with "/"."""
    flat = {}
    for name in names:
        value: Any = nested
        for part in name.split("/"):
            value = value[part]
        flat[name] = value
    return flat
