"""Checkpoints: named arrays with plain notes beside them, whole or not there; the last and the best are kept."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bilevel.runtime.disk import DiskFullError, naming_a_full_disk
from bilevel.runtime.seal import check_sealed, seal

_ARRAYS, _NOTES, _LOSS = "arrays", "notes", "upper_loss"
_UNFINISHED = "*.orbax-checkpoint-tmp"


@dataclass(frozen=True)
class CheckpointOptions:
    """When a run is saved, and which checkpoints are kept, for each of its methods."""

    every_seconds: float = 60.0
    """Seconds between checkpoints; more where saving would take over a fiftieth of the time. "inf" for never."""
    every_steps: int | None = None
    """Save after every so many steps as well."""
    keep_last: int = 2
    """How many of the last checkpoints to keep; with two, a broken one does not end the run."""
    keep_best: int = 1
    """How many of those with the lowest upper loss to keep besides."""

    def __post_init__(self) -> None:
        if not self.every_seconds > 0:
            raise ValueError(f"every_seconds must be positive, not {self.every_seconds}")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, not {self.every_steps}")
        if self.keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, not {self.keep_last}")
        if self.keep_best < 0:
            raise ValueError(f"keep_best must be 0 or more, not {self.keep_best}")


@dataclass(frozen=True)
class Checkpoint:
    """What was saved.

    Attributes:
        number: checkpoints of a folder are numbered in the order of their writing.
        arrays: by name.
        notes: everything else, plain values.
    """

    number: int
    arrays: Mapping[str, Any]
    notes: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one folder, written with Orbax.

    Every process of a run calls every method; each writes its own parts of the arrays, and the first one the rest.

    Args:
        folder: where; made when the first checkpoint is saved. What a killed run left unfinished there is removed.
        options: which checkpoints are kept.
    """

    def __init__(self, folder: Path, options: CheckpointOptions = CheckpointOptions()) -> None:
        self._folder = folder
        self._options = options
        self._opened: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._finishing: Future[None] | None = None

    def save(
        self, arrays: Mapping[str, Any], notes: Mapping[str, Any], upper_loss: float | None = None
    ) -> None:
        """Saves arrays and notes as the newest checkpoint; older ones go unless they are to be kept.

        Returns when the arrays may change; files are finished in the background, and a checkpoint counts only when
        all of it has reached its folder.

        Args:
            arrays: JAX's (sharded or not, keys too) and NumPy's, by names in which "/" makes folders.
            notes: plain values.
            upper_loss: by which the best checkpoints are found; one without it is none of them.

        Raises:
            DiskFullError: the disk is full, now or while the checkpoint before was finished.
        """
        import orbax.checkpoint as ocp

        self.wait()
        described = {name: _description(array) for name, array in arrays.items()}
        stored = {name: _stored(array) for name, array in arrays.items() if np.size(array)}
        items = {_NOTES: ocp.args.JsonSave({"arrays": described, "notes": dict(notes)})}
        if stored:  # Orbax refuses an empty tree: a run that is stopped at once has nothing to store
            items[_ARRAYS] = ocp.args.PyTreeSave(_nest(stored))
        with self._naming_a_full_disk():
            manager = self._manager()
            number = max(manager.all_steps(), default=0) + 1
            finite = upper_loss is not None and math.isfinite(upper_loss)
            metrics = {_LOSS: upper_loss if finite else None}
            manager.save(number, args=ocp.args.Composite(**items), metrics=metrics)
        self._finishing = self._thread.submit(self._finish, number)

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            DiskFullError: the disk is full.
        """
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    def read_newest(
        self, mesh: Mesh, complain: Callable[[str], None] = lambda text: None
    ) -> Checkpoint | None:
        """Returns the newest checkpoint that can be read, None where there is none.

        Args:
            mesh: on which arrays are spread as they were on the mesh that they were saved from.
            complain: told, in a line each, which checkpoints cannot be read.
        """
        if not self._folder.is_dir():
            return None
        for number in sorted(self._manager().all_steps(), reverse=True):
            folder = self._folder / str(number)
            try:
                # Before Orbax looks: its storage would not notice a changed byte, and meets a missing one noisily.
                check_sealed(folder)
                return self._read(number, mesh)
            # What a broken file makes Orbax raise is not specified.
            except Exception as error:
                complain(f"{folder}: this checkpoint cannot be read ({_first_line(error)})")
        return None

    def close(self) -> None:
        """Finishes what is being written and lets go of the folder; closing twice does no harm."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            opened, self._opened = self._opened, None
            if opened is not None:
                with naming_a_full_disk(self._folder):
                    opened.close()

    def _finish(self, number: int) -> None:
        with self._naming_a_full_disk():
            self._opened.wait_until_finished()
            if jax.process_index() == 0:
                seal(self._folder / str(number))

    @contextlib.contextmanager
    def _naming_a_full_disk(self) -> Iterator[None]:
        try:
            with naming_a_full_disk(self._folder):
                yield
        except DiskFullError:
            # Others need the disk, too: what could not be finished is of use to nobody.
            for unfinished in self._folder.glob(_UNFINISHED):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _manager(self) -> Any:
        if self._opened is None:
            # Imported here: it costs half a second, and only a run that saves need pay for it.
            import orbax.checkpoint as ocp

            # Errors of its threads reach us and are said in a line; Orbax logs each with a page of its own besides.
            logging.getLogger("absl").addFilter(_is_not_orbaxs)
            self._opened = ocp.CheckpointManager(
                self._folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LastAndBest(self._options),
                    # The policy alone decides; without this, losses would not be read back in the next attempt.
                    best_fn=lambda metrics: metrics[_LOSS],
                    cleanup_tmp_directories=True,
                ),
            )
        return self._opened

    def _read(self, number: int, mesh: Mesh) -> Checkpoint:
        import orbax.checkpoint as ocp

        manager = self._manager()
        written = manager.restore(number, args=ocp.args.Composite(**{_NOTES: ocp.args.JsonRestore()}))[_NOTES]
        described: Mapping[str, Any] = written["arrays"]
        stored = {name: text for name, text in described.items() if 0 not in text["shape"]}
        flat: dict[str, Any] = {}
        if stored:
            how = _nest({name: _restore_arguments(text, mesh) for name, text in stored.items()})
            like = jax.tree.map(lambda _: 0, how)
            arguments = ocp.args.PyTreeRestore(item=like, restore_args=how)
            restored = manager.restore(number, args=ocp.args.Composite(**{_ARRAYS: arguments}))
            flat = _flatten(restored[_ARRAYS], stored)
        arrays = {name: _restored(flat.get(name), text) for name, text in described.items()}
        return Checkpoint(number, arrays, written["notes"])


def _is_not_orbaxs(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


class _LastAndBest:
    """Which checkpoints Orbax keeps, the oldest first."""

    def __init__(self, options: CheckpointOptions) -> None:
        self._options = options

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        losses = ((found.metrics or {}).get(_LOSS) for found in checkpoints)
        ranked = sorted((loss, number) for number, loss in enumerate(losses) if loss is not None)
        best = [number for _, number in ranked[: self._options.keep_best]]
        last = range(len(checkpoints))[-self._options.keep_last :]
        return [number in best or number in last for number in range(len(checkpoints))]


def _description(array: Any) -> dict[str, Any]:
    """What it takes to make an array from its stored values."""
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


def _stored(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(array) if is_key else array


def _restore_arguments(described: Mapping[str, Any], mesh: Mesh) -> Any:
    import orbax.checkpoint as ocp

    if "axes" not in described:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    axes = (tuple(axis) if isinstance(axis, list) else axis for axis in described["axes"])
    return ocp.ArrayRestoreArgs(sharding=NamedSharding(mesh, PartitionSpec(*axes)))


def _restored(values: Any, described: Mapping[str, Any]) -> Any:
    if values is None:
        values = np.zeros(described["shape"], described["dtype"])
    if described["kind"] == "numpy":
        return values
    # Without axes it lay on one device, bound to none: it may meet arrays on any.
    array = jax.numpy.asarray(values)
    return jax.random.wrap_key_data(array, impl=described["key"]) if "key" in described else array


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Names with "/" as nested dictionaries."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        inner = nested
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = value
    return nested


def _flatten(nested: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    flat = {}
    for name in names:
        value: Any = nested
        for part in name.split("/"):
            value = value[part]
        flat[name] = value
    return flat


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
