"""The states of a training run on disk, and how far its derivative is: what `differentiate_run` goes on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bilevel.core.tree import PyTree
from bilevel.core.unroll.shelf import Progress
from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically
from bilevel.storage.disk import naming_a_full_disk
from bilevel.storage.stored_arrays import as_stored

_SUFFIX = ".safetensors"
_PROGRESS = "progress.json"
_REACHED = "reached"


class DiskShelf:
    """Trees by name as files, each whole or not there.

    Args:
        folder: made with its parents. Whatever stands there is taken to be of the same run and plan.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def put(self, name: str, tree: PyTree) -> None:
        path, fresh = self._path(name), self._folder / f".{name}.unfinished"
        leaves = jax.tree.leaves(tree)
        values = {str(number): np.asarray(as_stored(leaf), order="C") for number, leaf in enumerate(leaves)}
        with naming_a_full_disk(path):
            save_file(values, fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(fresh, path)

    def get(self, name: str, like: PyTree) -> PyTree:
        """See `Shelf.get`.

        Raises:
            InputError: the file is gone or broken, or of another tree.
        """
        path = self._path(name)
        leaves, structure = jax.tree.flatten(like)
        try:
            found = load_file(path)
            restored = [_as(leaf, found[str(number)]) for number, leaf in enumerate(leaves)]
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(f"{path}: broken ({error}); remove {self._folder} to begin again") from error
        return jax.tree.unflatten(structure, restored)

    def drop(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(path.name.removesuffix(_SUFFIX) for path in self._folder.glob(f"*{_SUFFIX}"))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


class DiskJournal:
    """A derivative's progress as files: `progress.json`, and the arrays that it names.

    Args:
        folder: made with its parents.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._shelf = folder, DiskShelf(folder)

    def read(self, like: PyTree) -> Progress | None:
        path = self._folder / _PROGRESS
        if not path.exists():
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
        name = found["reached"]
        digests = {int(begin): digest for begin, digest in found["digests"].items()}
        return Progress(digests, found["left"], None if name is None else self._shelf.get(name, like))

    def write(self, progress: Progress) -> None:
        name = None if progress.reached is None else f"{_REACHED}-{progress.left}"
        if name is not None and name not in self._shelf.names:
            self._shelf.put(name, progress.reached)
        # The arrays stand before the text that names them, and the ones before them go afterwards.
        text = json.dumps({"left": progress.left, "reached": name, "digests": progress.digests})
        with naming_a_full_disk(self._folder / _PROGRESS):
            write_atomically(self._folder / _PROGRESS, text + "\n")
        for other in self._shelf.names:
            if other.startswith(f"{_REACHED}-") and other != name:
                self._shelf.drop(other)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an `.npz` that is whole or not there."""
    fresh = path.with_name(f".{path.name}.unfinished")
    with naming_a_full_disk(path):
        with fresh.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)


def _as(like: Any, values: np.ndarray) -> Any:
    """The array of a leaf that stood where `like` does; bound to no device where that lay on one."""
    dtype = getattr(like, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jax.numpy.asarray(values), impl=jax.random.key_impl(like))
    sharding = getattr(like, "sharding", None)
    return jax.device_put(values, sharding if isinstance(sharding, NamedSharding) else None)
