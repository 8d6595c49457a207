"""A part of a source's rows, written as it came: same format, same columns, same values, and their scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from bilevel.data.documents import END_OF_TEXT
from bilevel.data.rows import Row
from bilevel.data.sources import open_source

SCORE = "score"


def write_kept(source: str, folder: Path, scores: Mapping[str, float]) -> Path:
    """Writes the rows of a source that are kept, in its order.

    JSON lines, JSON arrays, CSV, TSV and Parquet stay what they are, without a gzip around them; rows of dataset
    folders and of the hub become JSON lines. Every row keeps its columns and gets another one, `score` (or `score_2`
    and so on, if there is one already).

    Args:
        source: as `read_rows` takes it.
        folder: where `kept.*` is written.
        scores: by id of the rows that are kept, as `read_rows` names them.

    Returns:
        The file.
    """
    found = open_source(source)
    records = [
        (record, scores[identity])
        for number, record in found.records
        if (identity := f"{found.name}:{number}") in scores
    ]
    taken = {name for record, _ in records for name in record}
    column, number = SCORE, 1
    while column in taken:
        number += 1
        column = f"{SCORE}_{number}"
    lines = [{**record, column: score} for record, score in records]
    suffixes = [suffix.lower() for suffix in Path(source).suffixes if suffix.lower() != ".gz"]
    kind = suffixes[-1] if suffixes and Path(source).is_file() else ""
    if kind == ".parquet":
        file = folder / "kept.parquet"
        pyarrow.parquet.write_table(pa.Table.from_pylist(lines), file)
    elif kind in (".csv", ".tsv"):
        file = folder / f"kept{kind}"
        _write_table(file, lines, "\t" if kind == ".tsv" else ",")
    elif kind == ".json" and _is_array(Path(source)):
        file = folder / "kept.json"
        text = json.dumps(lines, ensure_ascii=False, indent=1, default=str)
        file.write_text(text + "\n", encoding="utf-8", newline="\n")
    else:
        file = folder / "kept.jsonl"
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        file.write_text(text, encoding="utf-8", newline="\n")
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
