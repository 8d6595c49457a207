"""Rows from and to files."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bilevel.data.forms import CONVERSATIONS, FORMS, LINEAGE, columns_of, recognise, row_of
from bilevel.data.rows import LABELS, Rejected, Row, free_name
from bilevel.data.sources import open_source
from bilevel.data.strict_json import strict_json
from bilevel.data.texts import SYSTEM
from bilevel.errors import InputError


class ReadRows(NamedTuple):
    """Rows of a source in its order, those that were left out, and lines for the user about what was found."""

    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    notices: tuple[str, ...] = ()


def read_rows(source: str | os.PathLike[str], splits: Sequence[str] = ("train",)) -> ReadRows:
    """Rows of a file, of a dataset folder, or of a dataset on the hub, in whichever known form they are.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "pool.jsonl"
    ...     _ = file.write_text('{"prompt": "Say hello.", "completion": "Hello."}')
    ...     read = read_rows(file)
    >>> read.rows[0].id, read.notices
    ('pool.jsonl:1', ('pool.jsonl: 1 rows, prompt/completion columns',))

    Args:
        source: a `.json` or `.jsonl` file (lines and arrays are told apart by content), `.csv`, `.tsv` or `.parquet`,
            each also gzipped; or a folder or name as in `open_source`. Text is UTF-8, with or without a byte order
            mark. Forms and how they are recognised: `bilevel.data.forms`.
        splits: which split of a dataset to take where the source names none and has several, best first.

    Returns:
        The rows, the rejected ones, and what was recognised. A row's id is `file:N`, with N the line in JSON lines
        and the position from 1 in every other format; `name/split:N` for datasets. Rows without a question or
        response, conversations that cannot be learned from, and rows with broken characters are rejected;
        `check_rejected` says whether these are too many.

    Raises:
        InputError: nothing there, nothing inside, broken content, columns of no known form, a row in another form
            than the first one, or a cell that is not text.
    """
    found = open_source(source, splits)
    rows: list[Row] = []
    rejected: list[Rejected] = []
    form: str | None = None
    others: tuple[str, ...] = ()
    unanswered, unread = 0, Counter[str]()
    for number, record in found.records:
        place = f"{found.place}:{number}"
        if form is None:
            form, others = recognise(place, record)
        row = row_of(place, f"{found.name}:{number}", form, record)
        if isinstance(row, Row):
            rows.append(row)
            if form in CONVERSATIONS:
                unanswered += CONVERSATIONS[form].ends_unanswered(record)
                unread.update(CONVERSATIONS[form].unread_keys(record))
        else:
            rejected.append(row)
    if form is None:
        raise InputError(
            f"{found.place}: no rows inside; write at least one row with 'instruction' and 'output'"
        )
    notices = _notices(found.name, form, others, unanswered, unread, rows, len(rejected))
    return ReadRows(tuple(rows), tuple(rejected), notices)


def write_rows(path: str | os.PathLike[str], rows: Sequence[Row], **columns: Sequence[Any]) -> None:
    """JSON lines that `read_rows` reads back, one row a line, each in the form that it came in.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "selected.jsonl"
    ...     write_rows(file, [Row("pool.jsonl:7", "Say hello.", "", "Hello.", form="prompt/completion")], weight=[1.5])
    ...     print(file.read_text().strip())
    {"id": "pool.jsonl:7", "prompt": "Say hello.", "completion": "Hello.", "weight": 1.5}

    The row's id stands in the column `id`. A column of the source file that has that name, or one of those that are
    written beside, becomes `original_id` and so on. Where a row comes from stands in the column `lineage`. Values are
    written as `bilevel.data.strict_json` has them.

    Args:
        path: where to write; an existing file is replaced.
        rows: what to write.
        **columns: further columns, a value a row (weights, reasons).
    """
    own = {"id", LINEAGE}.union(*(FORMS[form].columns for form in {row.form for row in rows}))
    for name, values in columns.items():
        if name in own:
            raise ValueError(f"column {name!r} belongs to the row itself; choose another name")
        if len(values) != len(rows):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(rows)} rows")
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for position, row in enumerate(rows):
            beside = {name: values[position] for name, values in columns.items()}
            file.write(strict_json(_record(row, beside)) + "\n")


def write_rejected(path: str | os.PathLike[str], rejected: Sequence[Rejected]) -> None:
    """JSON lines of the rows that were left out, with their `reason` and `remedy`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "rejected.jsonl"
    ...     row = Row("pool.jsonl:7", "Say hello.", "", "", form="prompt/completion")
    ...     write_rejected(file, [Rejected(row, "empty response", "write it")])
    ...     print(file.read_text().strip())
    {"id": "pool.jsonl:7", "prompt": "Say hello.", "completion": "", "reason": "empty response", "remedy": "write it"}
    """
    reasons = [item.reason for item in rejected]
    remedies = [item.remedy for item in rejected]
    write_rows(path, [item.row for item in rejected], reason=reasons, remedy=remedies)


def _notices(
    name: str,
    form: str,
    others: Sequence[str],
    unanswered: int,
    unread: Mapping[str, int],
    rows: Sequence[Row],
    rejected: int,
) -> tuple[str, ...]:
    found = [f"{len(rows) + rejected} rows", FORMS[form].title]
    systems = Counter(
        column for row in rows for column in SYSTEM if row.system and row.extra.get(column) == row.system
    )
    found += [f"column {column!r} as system message" for column in systems]
    if any(row.history for row in rows):
        found.append(f"{sum(1 for row in rows if row.history)} with several turns")
    if others:
        unused = " and ".join(
            sorted({column for other in others for column in FORMS[other].needed} - set(FORMS[form].needed))
        )
        found.append(f"{unused} not used for training")
    notices = [f"{name}: {', '.join(found)}"]
    if unanswered:
        notices.append(
            f"{name}: {unanswered} conversations end in a turn without a response, which trains nothing"
        )
    if unread:
        counted = ", ".join(f"{key!r} in {count}" for key, count in sorted(unread.items()))
        notices.append(f"{name}: keys of turns that are not read, by rows that carry them: {counted}")
    silent = sum(1 for row in rows if row.unlearned)
    if silent:
        notices.append(f"{name}: {silent} conversations hold responses that are marked as not to be learned")
    labels = [label for label in LABELS if any(label in row.labels for row in rows)]
    if labels:
        notices.append(
            f"{name}: columns {', '.join(map(repr, labels))} are read as labels, which reports and baselines go by; "
            "rename them if they mean something else"
        )
    return tuple(notices)


def _record(row: Row, beside: Mapping[str, Any]) -> dict[str, Any]:
    """A row's columns with others beside them; the row's own make way."""
    columns = columns_of(row)
    for name in {"id", *beside} & set(columns):
        columns[free_name(f"original_{name}", columns)] = columns.pop(name)
    return {"id": row.id, **columns, **beside}
