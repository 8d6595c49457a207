"""Rows from and to files: JSON lines or a JSON array with Alpaca columns."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bilevel.data.rows import LABELS, Rejected, Row
from bilevel.errors import InputError

_COLUMNS = ("instruction", "input", "output")
_NO = frozenset({"", "0", "0.0", "false", "nan", "no", "none", "null"})


class ReadRows(NamedTuple):
    """Rows of a file in file order, and those that were left out."""

    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]


def read_rows(path: str | os.PathLike[str]) -> ReadRows:
    """Rows of a JSON-lines file or of a JSON array, told apart by content.

    Columns are `instruction` and `output`, with an optional `input` (a null counts as empty). The columns in
    `LABELS` become labels: a truth value, number or text is kept as text, and "no", "none", "false", "0" and
    null become "". All other columns are kept in `extra`. Blank lines are skipped, but counted.

    Args:
        path: a UTF-8 file, with or without a byte order mark.

    Returns:
        The rows and the rejected ones. A row's id is `file:N`, with N the line in JSON lines and the position
        of the element in an array, both from 1. Rows without a response or instruction, and rows with broken
        characters, are rejected; `check_rejected` says whether these are too many.

    Raises:
        InputError: no such file, a folder, nothing inside, broken JSON, a row that is not an object, a
            missing column or one that is not text.
    """
    path = Path(path)
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for number, record in _records(path, _text(path)):
        row = _row(path, number, record)
        problem = _problem(row)
        if problem is None:
            rows.append(row)
        else:
            rejected.append(Rejected(row, *problem))
    if not rows and not rejected:
        raise InputError(
            f"{path}: the array is empty; write at least one row with 'instruction' and 'output'"
        )
    return ReadRows(tuple(rows), tuple(rejected))


def write_rows(path: str | os.PathLike[str], rows: Sequence[Row], **columns: Sequence[Any]) -> None:
    """JSON lines that `read_rows` reads back, one row a line.

    The row's id stands in the column `id`; a column of that name in the source file becomes `original_id`.

    Args:
        path: where to write; an existing file is replaced.
        rows: what to write.
        **columns: further columns, a value a row (weights, reasons); they win over columns of the same name
            in `extra`.
    """
    for name, values in columns.items():
        if name in _COLUMNS or name == "id":
            raise ValueError(f"column {name!r} belongs to the row itself; choose another name")
        if len(values) != len(rows):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(rows)} rows")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for position, row in enumerate(rows):
            record = _record(row) | {name: values[position] for name, values in columns.items()}
            file.write(_json_line(record))


def write_rejected(path: str | os.PathLike[str], rejected: Sequence[Rejected]) -> None:
    """JSON lines of the rows that were left out, with their `reason` and `remedy`."""
    reasons = [item.reason for item in rejected]
    remedies = [item.remedy for item in rejected]
    write_rows(path, [item.row for item in rejected], reason=reasons, remedy=remedies)


def _text(path: Path) -> str:
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; name a JSON or JSON-lines file inside it")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; save the file with UTF-8 encoding") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty; write at least one row with 'instruction' and 'output'")
    return text


def _records(path: Path, text: str) -> Iterator[tuple[int, Any]]:
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


def _row(path: Path, number: int, record: Any) -> Row:
    place = f"{path}:{number}"
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise InputError(
            f"{place}: a row must be a JSON object with 'instruction' and 'output', this is {kind}"
        )
    for name in ("instruction", "output"):
        if name not in record:
            there = ", ".join(map(repr, record)) or "none"
            raise InputError(f"{place}: column {name!r} is missing (there: {there}); add it or rename yours")
    texts = {name: _column(place, name, record.get(name)) for name in _COLUMNS}
    labels = {name: _label(record[name]) for name in LABELS if name in record and _is_label(record[name])}
    extra = {name: value for name, value in record.items() if name not in texts and name not in labels}
    return Row(f"{path.name}:{number}", **texts, labels=labels, extra=extra)


def _column(place: str, name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InputError(f"{place}: column {name!r} must be text, this is {kind}; write it as a JSON string")
    return value


def _is_label(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _label(value: Any) -> str:
    if value is True:
        return "yes"
    text = "" if value is None else str(value)
    return "" if text.strip().lower() in _NO else text


def _problem(row: Row) -> tuple[str, str] | None:
    if not row.output.strip():
        return "empty response", "write an output or remove the row"
    if not row.instruction.strip():
        return "empty instruction", "write an instruction or remove the row"
    try:
        "".join((row.instruction, row.input, row.output)).encode()
    except UnicodeEncodeError:
        return "broken characters (half of a surrogate pair)", "write the text again as UTF-8"
    return None


def _record(row: Row) -> dict[str, Any]:
    extra = dict(row.extra)
    if "id" in extra:
        identity = extra.pop("id")
        extra.setdefault("original_id", identity)
    texts: Mapping[str, Any] = {name: getattr(row, name) for name in ("id", *_COLUMNS)}
    return {**texts, **row.labels, **extra}


def _json_line(record: Mapping[str, Any]) -> str:
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(record)
    return line + "\n"
