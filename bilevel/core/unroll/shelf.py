"""Where states of a training run are put away: on the devices, or in the host's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding

from bilevel.core.tree import PyTree


@runtime_checkable
class Shelf(Protocol):
    """Trees by name, the same bits when they are taken out again."""

    def put(self, name: str, tree: PyTree) -> None: ...

    def get(self, name: str, like: PyTree) -> PyTree:
        """The tree of a name, on the devices again; `like` has its structure, shapes and places."""
        ...

    def drop(self, name: str) -> None: ...

    @property
    def names(self) -> frozenset[str]:
        """What stands here, an earlier process's leavings included."""
        ...


class DeviceShelf:
    """Keeps trees where they are."""

    def __init__(self) -> None:
        self._kept: dict[str, PyTree] = {}

    def put(self, name: str, tree: PyTree) -> None:
        self._kept[name] = tree

    def get(self, name: str, like: PyTree) -> PyTree:
        return self._kept[name]

    def drop(self, name: str) -> None:
        self._kept.pop(name, None)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._kept)


class HostShelf(DeviceShelf):
    """Keeps trees in the host's memory, and puts them back to where they lay."""

    def put(self, name: str, tree: PyTree) -> None:
        super().put(name, jax.tree.map(_from_device, tree))

    def get(self, name: str, like: PyTree) -> PyTree:
        return jax.tree.map(_to_device, super().get(name, like), is_leaf=lambda x: isinstance(x, _Away))


class Progress(NamedTuple):
    """How far the derivative of a run is.

    Attributes:
        digests: of the states at the ends of segments that were run, by the segment's first step.
        left: segments that are not pulled back yet.
        reached: what the others left, a tree of arrays; None while there are no others.
    """

    digests: Mapping[int, str]
    left: int
    reached: PyTree | None


@runtime_checkable
class Journal(Protocol):
    """Keeps a derivative's progress, so that it goes on where its process ended."""

    def read(self, like: PyTree) -> Progress | None:
        """What was written last; `like` has the structure of `Progress.reached`."""
        ...

    def write(self, progress: Progress) -> None: ...


class _Away(NamedTuple):
    values: np.ndarray
    sharding: Any


def _from_device(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return _Away(np.array(leaf), leaf.sharding)


def _to_device(leaf: Any) -> Any:
    if not isinstance(leaf, _Away):
        return leaf
    # What lay on one device was bound to none, and would meet a program as another kind of argument.
    return jax.device_put(leaf.values, leaf.sharding if isinstance(leaf.sharding, NamedSharding) else None)
