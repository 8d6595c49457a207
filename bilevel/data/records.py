"""Records of one file: how many there are, and each by its position, without holding what can be read again."""

from __future__ import annotations

import csv
import gzip
import io
import json
import mmap
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet

from bilevel.errors import InputError

Content = bytes | mmap.mmap
"""A file's bytes, in memory or mapped into it."""

_BLOCK = 1024
"""Rows of a Parquet table that are turned into records at once."""


@runtime_checkable
class Records(Protocol):
    """Records of a source."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def row(self, position: int) -> tuple[int, Any]:
        """The number that ids and errors name a record by, and the record; positions count from 0."""
        ...


class Listed:
    """Records that are held, numbered from 1.

    Args:
        records: all of them.
    """

    def __init__(self, records: Sequence[Any]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def row(self, position: int) -> tuple[int, Any]:
        """Number and record at a position from 0."""
        return position + 1, self._records[position]


class Lines:
    """JSON lines, of which only the places are held; records are numbered by their lines, from 1.

    Args:
        path: the file, for errors.
        content: its bytes.

    Raises:
        InputError: a line that is no UTF-8; `row` raises one for broken JSON.
    """

    def __init__(self, path: Path, content: Content) -> None:
        self._path, self._content = path, content
        self._starts, self._numbers = array("q"), array("q")
        start = number = 0
        # Only "\n" ends a line: str.splitlines would also cut at separators that stand raw inside strings.
        while start < len(content):
            number += 1
            line = self._line(start)
            if _text(path, line, number, start == 0).strip():
                self._starts.append(start)
                self._numbers.append(number)
            start += len(line) + 1

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, position: int) -> tuple[int, Any]:
        """Number and record at a position from 0."""
        start, number = self._starts[position], self._numbers[position]
        return number, _parse(self._path, number, _text(self._path, self._line(start), number, start == 0))

    def _line(self, start: int) -> bytes:
        end = self._content.find(b"\n", start)
        return self._content[start : end if end >= 0 else len(self._content)]


class Parquet:
    """Rows of a Parquet table, numbered from 1; one row group at a time is held.

    Args:
        path: the file, for errors.
        content: its bytes.

    Raises:
        InputError: this is no Parquet table, or two columns have one name; `row` raises one for a damaged part.
    """

    def __init__(self, path: Path, content: Content) -> None:
        self._path = path
        try:
            self._file = pyarrow.parquet.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        _check_names(path, self._file.schema_arrow.names)
        groups = range(self._file.num_row_groups)
        counts = (self._file.metadata.row_group(group).num_rows for group in groups)
        self._starts = [0, *accumulate(counts)]
        self._group, self._table = -1, pa.table({})
        self._first, self._block = 0, list[dict[str, Any]]()

    def __len__(self) -> int:
        return self._starts[-1]

    def row(self, position: int) -> tuple[int, Any]:
        """Number and record at a position from 0."""
        if not self._first <= position < self._first + len(self._block):
            try:
                self._read(position)
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(error) from error
        return position + 1, self._block[position - self._first]

    def table(self, positions: Sequence[int]) -> pa.Table:
        """The rows at these positions, which rise, with the columns' own types."""
        try:
            parts = []
            for group in range(self._file.num_row_groups):
                first, end = self._starts[group : group + 2]
                own = [position - first for position in positions if first <= position < end]
                parts.append(self._file.read_row_group(group).take(pa.array(own, pa.int64())))
            return pa.concat_tables(parts) if parts else self._file.schema_arrow.empty_table()
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _read(self, position: int) -> None:
        group = bisect_right(self._starts, position) - 1
        if group != self._group:
            self._group, self._table = group, self._file.read_row_group(group)
        offset = (position - self._starts[group]) // _BLOCK * _BLOCK
        self._first = self._starts[group] + offset
        self._block = self._table.slice(offset, _BLOCK).to_pylist()

    def _unreadable(self, error: Exception) -> InputError:
        detail = " ".join(str(error).split())[:200]
        return InputError(f"{self._path}: no Parquet table ({detail}); write it again")


def open_records(path: Path) -> Records:
    """The records of a file, in the format that its content and name show.

    Raises:
        InputError: it cannot be read, is empty, or its content is broken.
    """
    content = _content(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if content[:2] == b"\x1f\x8b":
        content, suffixes = _unzipped(path, content[:]), suffixes[:-1]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".parquet" or content[:4] == b"PAR1":
        return Parquet(path, content)
    if kind in (".csv", ".tsv"):
        return Listed(_table(path, _whole(path, content), "\t" if kind == ".tsv" else ","))
    if _begins_array(content):
        return Listed(_parse(path, 1, _whole(path, content)))
    lines = Lines(path, content)
    if not len(lines):
        raise _empty(path)
    return lines


def _content(path: Path) -> Content:
    try:
        with path.open("rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # nothing to map, or no place for it
                return file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _unzipped(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: broken gzip file ({error}); compress it again") from error


def _begins_array(content: Content) -> bool:
    start = 3 if content[:3] == b"\xef\xbb\xbf" else 0
    while start < len(content):
        block = content[start : start + 4096].lstrip()
        if block:
            return block.startswith(b"[")
        start += 4096
    return False


def _whole(path: Path, content: Content) -> str:
    text = _text(path, content[:], 1, True)
    if not text.strip():
        raise _empty(path)
    return text


def _empty(path: Path) -> InputError:
    return InputError(f"{path}: the file is empty; write at least one row with 'instruction' and 'output'")


def _text(path: Path, content: bytes, first_line: int, begins_file: bool) -> str:
    try:
        return content.decode("utf-8-sig" if begins_file else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + error.object[: error.start].count(b"\n")
        raise InputError(f"{path}:{line}: not UTF-8 text; save the file with UTF-8 encoding") from error


def _parse(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_of_pairs)
    except _GivenTwice as error:
        raise InputError(f"{path}:{first_line}: the key {error} stands twice; keep one of them") from error
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        problem = f"broken JSON ({error.msg}, column {error.colno})"
        remedy = "write one JSON object a line, or one JSON array of objects"
        raise InputError(f"{path}:{line}: {problem}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{first_line}: unusable JSON ({error}); mend or remove it") from error


class _GivenTwice(Exception):
    """A key of an object that is there already."""


def _of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; the standard leaves it open which of two equal keys counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _GivenTwice(repr(_first_double(name for name, _ in pairs)))
    return found


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = _first_double(names)
    if twice is not None:
        raise InputError(f"{path}: the column {twice!r} stands twice; rename or remove one of them")


def _first_double(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _table(path: Path, text: str, delimiter: str) -> list[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a long response is no mistake
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records = []
    try:
        _check_names(path, reader.fieldnames or ())
        for number, record in enumerate(reader, start=1):
            if None in record:
                raise InputError(
                    f"{path}:{number}: this row has more cells than the header has columns; put texts that hold "
                    f"{delimiter!r} in quotes"
                )
            records.append(record)
    except csv.Error as error:
        raise InputError(
            f"{path}: broken table near line {reader.line_num} ({error}); mend its quotes"
        ) from error
    return records
