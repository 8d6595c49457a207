"""A folder of data sets by fingerprint, so that a checkpoint can name the rows that it belongs to."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bilevel.data.dataset import ArrayRows
from bilevel.data.encode import EncodedRows
from bilevel.data.rows import row_line, row_of_line
from bilevel.errors import InputError
from bilevel.storage.disk import naming_a_full_disk
from bilevel.storage.seal import FILE as SEAL
from bilevel.storage.seal import check_sealed, seal

_KIND = "kind.json"
_ROWS = "rows.jsonl"
_ARRAYS = "arrays.safetensors"
_COLUMNS = "columns.safetensors"
_UNFINISHED = ".unfinished-"


class RowStore:
    """Data sets on disk: each is there whole or not at all, and is known by its fingerprint.

    A data set is a folder named after its fingerprint: the rows (the ids of rows that are no text) as JSON lines, and
    arrays as safetensors. A data set that is put again costs nothing.

    >>> import tempfile
    >>> rows = ArrayRows({"x": np.eye(2), "y": np.array([0, 1])})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = RowStore(folder)
    ...     fingerprint = store.put(rows)
    ...     again = store.get(fingerprint)
    >>> again.fingerprint == rows.fingerprint
    True

    Args:
        folder: where they are; it is made when the first is put.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def known(self) -> tuple[str, ...]:
        """Fingerprints of the data sets that are here, in alphabetical order."""
        return tuple(sorted(file.parent.name for file in self.folder.glob(f"*/{SEAL}")))

    def put(self, dataset: Any) -> str:
        """Writes a data set, unless it is there.

        Args:
            dataset: an `EncodedRows` or `ArrayRows`.

        Returns:
            Its fingerprint; once this has returned, the data set is on disk.

        Raises:
            TypeError: another kind of data set.
        """
        if not isinstance(dataset, EncodedRows | ArrayRows):
            raise TypeError(
                f"{type(dataset).__name__} cannot be stored; give EncodedRows (of PackedRows, its `encoded`) "
                "or ArrayRows"
            )
        target = self.folder / dataset.fingerprint
        if self._is_whole(target):
            return target.name
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=_UNFINISHED))
        try:
            with naming_a_full_disk(target):
                _write(temporary, dataset)
                seal(temporary)
                _sync(temporary)
                # Another process may have put the same data set meanwhile; what is damaged gives way.
                if not self._is_whole(target):
                    shutil.rmtree(target, ignore_errors=True)
                    os.replace(temporary, target)
                    _sync_entry(self.folder)
        except OSError:
            if not self._is_whole(target):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target.name

    def get(self, fingerprint: str) -> EncodedRows | ArrayRows:
        """The data set with this fingerprint.

        Raises:
            InputError: there is none, or it is damaged; the message names its folder.
        """
        folder = self.folder / fingerprint
        if not folder.is_dir():
            raise InputError(f"{folder}: no such rows; copy the folder of rows again, or begin a new run")
        try:
            if not check_sealed(folder):
                raise ValueError(f"{SEAL} is missing")
            dataset = _read(folder)
            if dataset.fingerprint != fingerprint:
                raise ValueError("these are other rows than its name says")
        except (ValueError, KeyError, TypeError, SafetensorError, OSError) as error:
            detail = " ".join(str(error).split())
            raise InputError(
                f"{folder}: damaged rows ({detail}); copy the folder of rows again, or begin a new run"
            ) from error
        return dataset

    def _is_whole(self, folder: Path) -> bool:
        try:
            return check_sealed(folder)
        except ValueError:
            return False


def _write(folder: Path, dataset: EncodedRows | ArrayRows) -> None:
    if isinstance(dataset, EncodedRows):
        kind = {"kind": "encoded"}
        lines = map(row_line, dataset.rows)
        own = {"tokens": dataset.tokens, "segments": dataset.segments, "loss_mask": dataset.loss_mask}
        _save(folder / _ARRAYS, own)
    else:
        kind = {"kind": "arrays"}
        lines = map(json.dumps, dataset.ids or ())
    _save(folder / _COLUMNS, dataset.columns)
    (folder / _ROWS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    (folder / _KIND).write_text(json.dumps(kind) + "\n", encoding="utf-8", newline="\n")
    # mkdtemp makes private folders; a result is as readable as any that its owner makes.
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, file)


def _read(folder: Path) -> EncodedRows | ArrayRows:
    kind = json.loads((folder / _KIND).read_text(encoding="utf-8"))["kind"]
    # Only "\n" ends a line: str.splitlines would also cut at separators that stand raw inside strings.
    lines = (folder / _ROWS).read_text(encoding="utf-8").split("\n")[:-1]
    columns = load_file(folder / _COLUMNS)
    if kind == "encoded":
        own = load_file(folder / _ARRAYS)
        rows = tuple(map(row_of_line, lines))
        return EncodedRows(rows, own["tokens"], own["segments"], own["loss_mask"], columns)
    if kind == "arrays":
        return ArrayRows(columns, [json.loads(line) for line in lines] or None)
    raise ValueError(f"{_KIND} knows no {kind!r}")


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_entry(folder)


def _sync_entry(folder: Path) -> None:
    """Makes sure that the names in a folder outlast a crash, where folders can be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
