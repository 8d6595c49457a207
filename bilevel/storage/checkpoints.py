"""Checkpoints: named arrays with plain notes beside them, whole or not there; the last and the best are kept."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilevel.errors import InputError
from bilevel.storage.disk import DiskFullError, naming_a_full_disk
from bilevel.storage.seal import check_sealed, seal
from bilevel.storage.stored_arrays import (
    Place,
    as_described,
    as_stored,
    describe,
    flatten,
    nest,
    restore_arguments,
)

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
        read_only: whether nothing is to change there, since another process may be writing.
    """

    def __init__(
        self, folder: Path, options: CheckpointOptions = CheckpointOptions(), read_only: bool = False
    ) -> None:
        self._folder = folder
        self._options = options
        self._read_only = read_only
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
        described = {name: describe(array) for name, array in arrays.items()}
        stored = {name: as_stored(array) for name, array in arrays.items() if np.size(array)}
        items = {_NOTES: ocp.args.JsonSave({"arrays": described, "notes": dict(notes)})}
        if stored:  # Orbax refuses an empty tree: a run that is stopped at once has nothing to store
            items[_ARRAYS] = ocp.args.PyTreeSave(nest(stored))
        with self._naming_a_full_disk():
            manager = self._manager()
            number = max(manager.all_steps(), default=0) + 1
            finite = upper_loss is not None and math.isfinite(upper_loss)
            metrics = {_LOSS: upper_loss if finite else None}
            manager.save(number, args=ocp.args.Composite(**items), metrics=metrics)
        self._finishing = self._thread.submit(self._finish, number)

    def wait(self) -> None:
        """When everything is written.

        Raises:
            DiskFullError: the disk is full.
        """
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    def read_newest(
        self, place: Place, complain: Callable[[str], None] = lambda text: None
    ) -> Checkpoint | None:
        """The newest checkpoint that is whole, None where there is none.

        Args:
            place: where an array goes that lay on several devices.
            complain: told, in a line each, which checkpoints are broken.

        Raises:
            InputError: a checkpoint is whole and cannot be read all the same: for want of memory, say.
        """
        for number in sorted(self._numbers(), reverse=True):
            folder, whole = self._folder / str(number), False
            try:
                # Before Orbax looks: its storage would not notice a changed byte, and meets a missing one noisily.
                whole = check_sealed(folder)
                return self._read(number, place)
            # What a broken file makes Orbax raise is not specified.
            except Exception as error:
                said = f"{folder}: this checkpoint cannot be read ({_first_line(error)})"
                if whole:  # to pass it over would throw away what is good
                    raise InputError(f"{said}, though it is whole: is this machine large enough?") from error
                complain(said)
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

    def _numbers(self) -> list[int]:
        return list(self._manager().all_steps()) if self._folder.is_dir() else []

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
                    cleanup_tmp_directories=not self._read_only,
                    read_only=self._read_only,
                ),
            )
        return self._opened

    def _read(self, number: int, place: Place) -> Checkpoint:
        import orbax.checkpoint as ocp

        manager = self._manager()
        written = manager.restore(number, args=ocp.args.Composite(**{_NOTES: ocp.args.JsonRestore()}))[_NOTES]
        described: Mapping[str, Any] = written["arrays"]
        stored = {name: text for name, text in described.items() if 0 not in text["shape"]}
        flat: dict[str, Any] = {}
        if stored:
            how = nest({name: restore_arguments(name, text, place) for name, text in stored.items()})
            like = jax.tree.map(lambda _: 0, how)
            arguments = ocp.args.PyTreeRestore(item=like, restore_args=how)
            restored = manager.restore(number, args=ocp.args.Composite(**{_ARRAYS: arguments}))
            flat = flatten(restored[_ARRAYS], stored)
        arrays = {name: as_described(flat.get(name), text) for name, text in described.items()}
        return Checkpoint(number, arrays, written["notes"])


def _is_not_orbaxs(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


class _LastAndBest:
    """Which checkpoints Orbax keeps, the oldest first."""

    def __init__(self, options: CheckpointOptions) -> None:
        self._options = options

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        losses = (_loss(found.metrics) for found in checkpoints)
        ranked = sorted((loss, number) for number, loss in enumerate(losses) if loss is not None)
        best = [number for _, number in ranked[: self._options.keep_best]]
        last = range(len(checkpoints))[-self._options.keep_last :]
        return [number in best or number in last for number in range(len(checkpoints))]


def _loss(metrics: Mapping[str, Any] | None) -> float | None:
    return (metrics or {}).get(_LOSS)


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
