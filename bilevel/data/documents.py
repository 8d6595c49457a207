"""Plain text: documents to learn from, and passages of which only the last word counts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from bilevel.data.files import ReadRows
from bilevel.data.forms import FORMS, row_of
from bilevel.data.rows import Rejected, Row
from bilevel.data.sources import open_source
from bilevel.errors import InputError

END_OF_TEXT = "<|endoftext|>"
SOURCE = "source"
"""Column that says where a row comes from."""

Separator = Literal["auto", "blank", "endoftext"]
_BREAKS = {"blank": re.compile(r"\n[^\S\n]*\n"), "endoftext": re.compile(re.escape(END_OF_TEXT))}
_TEXT_FILES = (".txt", ".text")
_LAST_WORD = re.compile(r"(?s)(.*\S)\s+([^\W_](?:\S*\w)?)\W*")


def read_documents(source: str | os.PathLike[str], separator: Separator = "auto") -> ReadRows:
    r"""Documents of a text file, or of rows with a column `text`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "stories.txt"
    ...     _ = file.write_text("A cat sat.\n\nA dog ran.")
    ...     [(row.id, row.output) for row in read_documents(file).rows]
    [('stories.txt:1', 'A cat sat.'), ('stories.txt:3', 'A dog ran.')]

    In a text file (`.txt`, `.text`) documents stand apart by <|endoftext|> or by blank lines; `auto` takes the former
    where the file holds it. Everything that `read_rows` reads may hold documents in its column `text`. A document is a
    row of the form "text" without instruction, whose `output` is its text without outer blanks; its column `source`
    is the one that it has, or else the name of its file.

    Args:
        source: a UTF-8 file, or a folder or name as in `open_source`.
        separator: what stands between the documents of a text file.

    Returns:
        The documents, with ids `file:line` in text files (the line that a document begins in, from 1) and as
        `read_rows` gives them elsewhere; rows without text as rejected.

    Raises:
        InputError: no such file, no text, no UTF-8, broken rows, or no column `text`.
    """
    path = Path(source)
    if path.suffix.lower() not in _TEXT_FILES:
        return _read_rows(source, ("text",))
    text = _text(path)
    if separator == "auto":
        separator = "endoftext" if END_OF_TEXT in text else "blank"
    rows = tuple(
        Row(f"{path.name}:{line}", "", "", document, extra={SOURCE: path.stem}, form="text")
        for line, document in _split(text, _BREAKS[separator])
    )
    return ReadRows(rows, (), (f"{path.name}: {len(rows)} documents",))


def read_passages(source: str | os.PathLike[str], separator: Separator = "auto") -> ReadRows:
    """Passages whose last word is to be told: rows with the passage as instruction and the word as output.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "stories.txt"
    ...     _ = file.write_text("A cat sat on a mat.")
    ...     [(row.instruction, row.output) for row in read_passages(file).rows]
    [('A cat sat on a', 'mat')]

    They come from rows with the columns `context` and `continuation` (LAMBADA's), or from whatever `read_documents`
    reads: then a document's last word is cut off, with the punctuation after it left out.

    Args:
        source: as in `read_documents`.
        separator: as in `read_documents`.

    Returns:
        The passages, and the rejected ones: without context, without word, or of one word only.

    Raises:
        InputError: as `read_documents` does.
    """
    if Path(source).suffix.lower() in _TEXT_FILES:
        found = read_documents(source, separator)
    else:
        found = _read_rows(source, ("passage", "text"))
    rows, rejected = [], list(found.rejected)
    for row in found.rows:
        passage = row if row.form == "passage" else _without_last_word(row)
        if isinstance(passage, Row):
            rows.append(passage)
        else:
            rejected.append(passage)
    return ReadRows(tuple(rows), tuple(rejected), found.notices)


def source_of(row: Row) -> str:
    """Where a row comes from: its column `source`, else its kind of task, else the name of its file.

    >>> source_of(Row("web.jsonl:3", "", "", "A text.", extra={"source": "forum"}))
    'forum'
    >>> source_of(Row("web.jsonl:3", "", "", "A text."))
    'web.jsonl'
    """
    named = row.extra.get(SOURCE)
    if isinstance(named, str) and named:
        return named
    return row.label("kind") or row.id.rpartition(":")[0]


def _text(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name a text file inside it")
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


def _read_rows(source: str | os.PathLike[str], forms: Sequence[str]) -> ReadRows:
    """Rows in the first of these forms whose columns the first row has."""
    opened = open_source(source)
    rows, rejected = [], []
    form = ""
    for number, record in opened.records:
        place = f"{opened.place}:{number}"
        if not form:
            columns = set(record) if isinstance(record, dict) else set()
            fitting = [name for name in forms if set(FORMS[name].needed) <= columns]
            if not fitting:
                wanted = " or ".join(" and ".join(map(repr, FORMS[name].needed)) for name in forms)
                there = ", ".join(map(repr, columns)) or "none"
                raise InputError(
                    f"{place}: no column {wanted} (there: {there}); rename yours, or name a .txt file"
                )
            form = fitting[0]
        row = row_of(place, f"{opened.name}:{number}", form, record)
        if isinstance(row, Rejected):
            rejected.append(row)
        else:
            extra = {SOURCE: Path(opened.name).stem, **row.extra}
            prompt, text = row.instruction.strip(), row.output.strip()
            rows.append(replace(row, instruction=prompt, output=text, extra=extra))
    if not form:
        raise InputError(f"{opened.place}: no rows inside; write at least one")
    return ReadRows(
        tuple(rows),
        tuple(rejected),
        (f"{opened.name}: {len(rows) + len(rejected)} rows, {FORMS[form].title}",),
    )


def _without_last_word(row: Row) -> Row | Rejected:
    match = _LAST_WORD.fullmatch(row.output)
    if match is None:
        return Rejected(row, "no last word", "write a passage of two words or more, or remove it")
    return replace(row, instruction=match[1], output=match[2], form="passage")
