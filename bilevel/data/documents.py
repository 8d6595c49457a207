"""Plain text from files: documents to learn from, and passages of which only the last word counts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from bilevel.data.files import ReadRows
from bilevel.data.rows import Rejected, Row
from bilevel.errors import InputError

END_OF_TEXT = "<|endoftext|>"
SOURCE = "source"
"""Column that says where a row comes from."""

Separator = Literal["auto", "blank", "endoftext"]
_BREAKS = {"blank": re.compile(r"\n[^\S\n]*\n"), "endoftext": re.compile(re.escape(END_OF_TEXT))}
_LAST_WORD = re.compile(r"(?s)(.*\S)\s+([^\W_](?:\S*\w)?)\W*")


def read_documents(path: str | os.PathLike[str], separator: Separator = "auto") -> ReadRows:
    """Documents of a text file, or of JSON lines with a column `text`, told apart by content.

    In a text file documents stand apart by <|endoftext|> or by blank lines; `auto` takes the former where the file
    holds it. A document is a row without instruction whose `output` is its text, without outer blanks. Its
    column `source` is the file's name without its ending, or the column of that name in JSON lines.

    Args:
        path: a UTF-8 file, with or without a byte order mark.
        separator: what stands between the documents of a text file.

    Returns:
        The documents, with ids `file:line` (the line that a document begins in, from 1), and of JSON lines those
        without text as rejected.

    Raises:
        InputError: no such file, no text, no UTF-8, broken JSON, or a column `text` that is missing or holds no text.
    """
    path = Path(path)
    text = _text(path)
    if text.lstrip().startswith("{"):
        return _read_json_lines(path, text, (("text",),))
    if separator == "auto":
        separator = "endoftext" if END_OF_TEXT in text else "blank"
    rows = tuple(
        Row(f"{path.name}:{line}", "", "", document, extra={SOURCE: path.stem})
        for line, document in _split(text, _BREAKS[separator])
    )
    return ReadRows(rows, ())


def read_passages(path: str | os.PathLike[str], separator: Separator = "auto") -> ReadRows:
    """Passages whose last word is to be told: rows with the passage as instruction and the word as output.

    They come from JSON lines with the columns `context` and `continuation` (LAMBADA's), or from whatever
    `read_documents` reads: then a document's last word is cut off, with the punctuation after it left out.

    Args:
        path: a UTF-8 file.
        separator: as in `read_documents`.

    Returns:
        The passages, and the rejected ones: without context, without word, or of one word only.

    Raises:
        InputError: as `read_documents` does.
    """
    path = Path(path)
    text = _text(path)
    if text.lstrip().startswith("{"):
        found = _read_json_lines(path, text, (("context", "continuation"), ("text",)))
    else:
        found = read_documents(path, separator)
    rows, rejected = [], list(found.rejected)
    for row in found.rows:
        passage = row if row.instruction else _without_last_word(row)
        if isinstance(passage, Row):
            rows.append(passage)
        else:
            rejected.append(passage)
    return ReadRows(tuple(rows), tuple(rejected))


def source_of(row: Row) -> str:
    """Where a row comes from: its column `source`, else its kind of task, else the name of its file."""
    named = row.extra.get(SOURCE)
    if isinstance(named, str) and named:
        return named
    return row.label("kind") or row.id.rpartition(":")[0]


def _text(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name a text or JSON-lines file inside it")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; save the file with UTF-8 encoding") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty; write at least one document")
    return text.replace("\r\n", "\n")


def _split(text: str, separator: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Line and text of each document that is not blank."""
    start, line = 0, 1
    for end, after in (*(match.span() for match in separator.finditer(text)), (len(text), len(text))):
        piece = text[start:end]
        body = piece.lstrip()
        if body:
            yield line + piece.count("\n", 0, len(piece) - len(body)), body.rstrip()
        line += text.count("\n", start, after)
        start = after


def _read_json_lines(path: Path, text: str, forms: tuple[tuple[str, ...], ...]) -> ReadRows:
    rows, rejected = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: broken JSON ({error}); write one JSON object a line") from error
        columns = next(
            (form for form in forms if isinstance(record, dict) and set(form) <= set(record)), None
        )
        if columns is None:
            wanted = " or ".join(" and ".join(map(repr, form)) for form in forms)
            there = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
            raise InputError(f"{place}: no column {wanted} (there: {there}); rename yours")
        row = _row(path, number, columns, record)
        empty = [name for name, value in zip(columns, _texts(row, columns), strict=True) if not value.strip()]
        if empty:
            rejected.append(Rejected(row, f"empty {empty[0]}", f"write the {empty[0]} or remove the row"))
        else:
            rows.append(row)
    return ReadRows(tuple(rows), tuple(rejected))


def _row(path: Path, number: int, columns: Sequence[str], record: dict[str, Any]) -> Row:
    for name in columns:
        if not isinstance(record[name], str | None):
            kind = type(record[name]).__name__
            raise InputError(
                f"{path}:{number}: column {name!r} must be text, this is {kind}; write it as a JSON string"
            )
    extra = {name: value for name, value in record.items() if name not in columns}
    extra.setdefault(SOURCE, path.stem)
    texts = [(record[name] or "").strip() for name in columns]
    prompt = texts[0] if len(texts) > 1 else ""
    return Row(f"{path.name}:{number}", prompt, "", texts[-1], extra=extra)


def _texts(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return (row.instruction, row.output) if len(columns) > 1 else (row.output,)


def _without_last_word(row: Row) -> Row | Rejected:
    match = _LAST_WORD.fullmatch(row.output)
    if match is None:
        return Rejected(row, "no last word", "write a passage of two words or more, or remove it")
    return Row(row.id, match[1], "", match[2], row.labels, row.extra)
