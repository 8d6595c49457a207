"""Records from one file (JSON lines, a JSON array, CSV, Parquet; gzipped or not), a dataset folder, or the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.data.hub import folder_records, hub_records
from bilevel.data.records import Listed, Records, open_records
from bilevel.errors import InputError

_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WITH_SPLIT = re.compile(r"(.+?)(?::([^:\[\]]+))?:([^:\[\]]+(?:\[[^\]]*\])?)")


class Source(NamedTuple):
    """Records with their numbers.

    Attributes:
        place: how errors name the source.
        name: what ids of rows begin with.
        rows: the records: how many, and each by its position. Numbers count from 1, lines in JSON lines and positions
            in every other format.
    """

    place: str
    name: str
    rows: Records

    @property
    def records(self) -> Iterator[tuple[int, Any]]:
        """`(number, record)`, in their order."""
        return (self.rows.row(position) for position in range(len(self.rows)))


def open_source(source: str | os.PathLike[str], splits: Sequence[str] = ("train",)) -> Source:
    """Finds rows.

    Args:
        source: a file, a folder that holds a dataset as the hub has them (README.md and data files) or as `datasets`
            saves them, or `owner/name` on the hub. Folders and names may go on with `:SPLIT` or `:SUBSET:SPLIT`, and
            a split with a slice, `train[:100]`.
        splits: which split to take where the source names none and has several, best first.

    Returns:
        Its records; JSON lines and Parquet are read as they are taken.

    Raises:
        InputError: there is no such file, folder or name, it has no such split, or cannot be read.
    """
    base, subset, split = _divide(os.fspath(source))
    path = Path(base)
    if path.is_dir():
        name, rows = folder_records(path, subset, split, splits)
        return Source(f"{base}:{name}", f"{path.resolve().name}/{name}", Listed(rows))
    if path.exists():
        if split:
            raise InputError(f"{source}: a file has no splits; write {base}")
        return Source(base, path.name, open_records(path))
    if not _HUB_NAME.fullmatch(base) or path.name.lower().endswith(_SUFFIXES):
        raise InputError(f"{base}: no such file; check the path")
    name, rows = hub_records(base, subset, split, splits)
    return Source(f"{base}:{name}", f"{base}/{name}", Listed(rows))


def _divide(source: str) -> tuple[str, str | None, str | None]:
    """`NAME`, `NAME:SPLIT` or `NAME:SUBSET:SPLIT`; a path that is there is a path, whatever it holds."""
    parts = _WITH_SPLIT.fullmatch(source)
    if parts and not Path(source).exists() and (Path(parts[1]).exists() or _HUB_NAME.fullmatch(parts[1])):
        return parts[1], parts[2], parts[3]
    return source, None, None
