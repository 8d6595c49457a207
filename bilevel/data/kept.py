"""A part of a source's rows, written as it came: same format, same columns, same values, and their scores."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from bilevel.data.documents import END_OF_TEXT
from bilevel.data.records import Parquet
from bilevel.data.rows import Row, free_name
from bilevel.data.sources import open_source
from bilevel.data.strict_json import strict_json

SCORE = "score"


def write_kept(source: str, folder: Path, scores: Mapping[str, float]) -> Path:
    """Writes the rows of a source that are kept, in its order.

    JSON lines, JSON arrays, CSV, TSV and Parquet stay what they are, without a gzip around them; rows of dataset
    folders and of the hub become JSON lines. Every row keeps its columns, in Parquet with their types, and gets another
    one, `score` (or `score_2` and so on, if there is one already).

    Args:
        source: as `read_rows` takes it.
        folder: where `kept.*` is written.
        scores: by id of the rows that are kept, as `read_rows` names them.

    Returns:
        The file.
    """
    found = open_source(source)
    kept = [
        (position, record, scores[identity])
        for position, (number, record) in enumerate(found.records)
        if (identity := f"{found.name}:{number}") in scores
    ]
    column = free_name(SCORE, {name for _, record, _ in kept for name in record})
    if isinstance(found.rows, Parquet):
        file = folder / "kept.parquet"
        table = found.rows.table([position for position, _, _ in kept])
        found_scores = pa.array([score for _, _, score in kept], pa.float64())
        pyarrow.parquet.write_table(table.append_column(column, found_scores), file)
        return file
    lines = [{**record, column: score} for _, record, score in kept]
    suffixes = [suffix.lower() for suffix in Path(source).suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes and Path(source).is_file() else ""
    if kind in (".csv", ".tsv"):
        file = folder / f"kept{kind}"
        _write_table(file, lines, "\t" if kind == ".tsv" else ",")
    elif kind == ".json" and _is_array(Path(source)):
        file = folder / "kept.json"
        file.write_text(strict_json(lines, indent=1) + "\n", encoding="utf-8", newline="\n")
    else:
        file = folder / "kept.jsonl"
        file.write_text("".join(strict_json(line) + "\n" for line in lines), encoding="utf-8", newline="\n")
    return file


def write_kept_text(rows: Sequence[Row], folder: Path, end_of_text: bool) -> Path:
    """Writes documents as a text file; their scores have no place in it.

    Args:
        rows: documents that are kept, in their order.
        folder: where `kept.txt` is written.
        end_of_text: whether they stand apart by <|endoftext|>, else by blank lines.

    Returns:
        The file.
    """
    separator = f"\n{END_OF_TEXT}\n" if end_of_text else "\n\n"
    file = folder / "kept.txt"
    file.write_text(separator.join(row.output for row in rows) + "\n", encoding="utf-8", newline="\n")
    return file


def _write_table(file: Path, lines: Sequence[Mapping[str, Any]], delimiter: str) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(lines[0]) if lines else [], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(lines)


def _is_array(path: Path) -> bool:
    return path.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
