"""Records from one file (JSON lines, a JSON array, CSV, Parquet; gzipped or not), a dataset folder, or the hub."""

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet

from bilevel.data.hub import folder_records, hub_records
from bilevel.errors import InputError

_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WITH_SPLIT = re.compile(r"(.+?)(?::([^:\[\]]+))?:([^:\[\]]+(?:\[[^\]]*\])?)")


class Source(NamedTuple):
    """Records with their numbers.

    Attributes:
        place: how errors name the source.
        name: what ids of rows begin with.
        records: `(number, record)`, numbers from 1: lines in JSON lines, positions in every other format.
    """

    place: str
    name: str
    records: Iterable[tuple[int, Any]]


def open_source(source: str | os.PathLike[str], splits: Sequence[str] = ("train",)) -> Source:
    """Finds rows.

    Args:
        source: a file, a folder that holds a dataset as the hub has them (README.md and data files) or as `datasets`
            saves them, or `owner/name` on the hub. Folders and names may go on with `:SPLIT` or `:SUBSET:SPLIT`, and
            a split with a slice, `train[:100]`.
        splits: which split to take where the source names none and has several, best first.

    Returns:
        Its records; files are read as the records are taken.

    Raises:
        InputError: there is no such file, folder or name, it has no such split, or cannot be read.
    """
    base, subset, split = _divide(os.fspath(source))
    path = Path(base)
    if path.is_dir():
        name, rows = folder_records(path, subset, split, splits)
        return Source(f"{base}:{name}", f"{path.resolve().name}/{name}", enumerate(rows, start=1))
    if path.exists():
        if split:
            raise InputError(f"{source}: a file has no splits; write {base}")
        return Source(base, path.name, _file_records(path))
    if not _HUB_NAME.fullmatch(base) or path.name.lower().endswith(_SUFFIXES):
        raise InputError(f"{base}: no such file; check the path")
    name, rows = hub_records(base, subset, split, splits)
    return Source(f"{base}:{name}", f"{base}/{name}", enumerate(rows, start=1))


def _divide(source: str) -> tuple[str, str | None, str | None]:
    """`NAME`, `NAME:SPLIT` or `NAME:SUBSET:SPLIT`; a path that is there is a path, whatever it holds."""
    parts = _WITH_SPLIT.fullmatch(source)
    if parts and not Path(source).exists() and (Path(parts[1]).exists() or _HUB_NAME.fullmatch(parts[1])):
        return parts[1], parts[2], parts[3]
    return source, None, None


def _file_records(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if content.startswith(b"\x1f\x8b"):
        content, suffixes = _unzipped(path, content), suffixes[:-1]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".parquet" or content.startswith(b"PAR1"):
        yield from enumerate(_parquet(path, content), start=1)
        return
    text = _text(path, content)
    if kind in (".csv", ".tsv"):
        yield from enumerate(_table(path, text, "\t" if kind == ".tsv" else ","), start=1)
    else:
        yield from _json(path, text)


def _unzipped(path: Path, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: broken gzip file ({error}); compress it again") from error


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; save the file with UTF-8 encoding") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty; write at least one row with 'instruction' and 'output'")
    return text


def _json(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    if text.lstrip().startswith("["):
        yield from enumerate(_parse(path, 1, text), start=1)
        return
    # Only "\n" ends a line of JSON lines: str.splitlines would also cut at separators that stand raw inside
    # strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _parse(path, number, line)


def _parse(path: Path, first_line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        problem = f"broken JSON ({error.msg}, column {error.colno})"
        remedy = "write one JSON object a line, or one JSON array of objects"
        raise InputError(f"{path}:{line}: {problem}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{first_line}: unusable JSON ({error}); mend or remove it") from error


def _table(path: Path, text: str, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)  # a long response is no mistake
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for number, record in enumerate(reader, start=1):
            if None in record:
                raise InputError(
                    f"{path}:{number}: this row has more cells than the header has columns; put texts that hold "
                    f"{delimiter!r} in quotes"
                )
            yield record
    except csv.Error as error:
        raise InputError(
            f"{path}: broken table near line {reader.line_num} ({error}); mend its quotes"
        ) from error


def _parquet(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(pa.BufferReader(content)) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        detail = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: no Parquet table ({detail}); write it again") from error
