"""What a report shows of a row's texts: all fields, each cut to a length that keeps pages short."""

import json
from collections.abc import Mapping
from typing import Any

from bilevel.data.forms import FORMS, recognise, row_of
from bilevel.data.rows import Rejected
from bilevel.errors import InputError

LONGEST_TEXT = 600
SHOWN_TURNS = 4
_COLUMNS = tuple(dict.fromkeys(column for form in FORMS.values() for column in form.columns))


def row_texts(line: Mapping[str, Any], longest: int = LONGEST_TEXT) -> list[tuple[str, str]]:
    """The (field, text) of what a row says.

    Args:
        line: a row as it stands in a file of the run, in whatever form it came.
        longest: characters of a field that are shown.
    """
    fields = _fields(line) or [(name, _plain(line[name])) for name in _COLUMNS if name in line]
    return [(field, short(text, longest)) for field, text in fields if text.strip()]


def short(text: str, longest: int) -> str:
    """The text, or its beginning and how long it is."""
    if len(text) <= longest:
        return text
    # Isolated, so that after a text that runs from right to left it still reads from left to right.
    return f"{text[:longest].rstrip()} \u2066… ({len(text):,} characters)\u2069"


def _fields(line: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the row says in the order in which it is said; nothing where its form is broken."""
    try:
        found = row_of("", "", recognise("", line)[0], line)
    except InputError:
        return []
    row = found.row if isinstance(found, Rejected) else found
    fields = [("system", row.system)]
    left_out = max(0, len(row.history) - SHOWN_TURNS)
    if left_out:
        fields.append(("", f"… {left_out} earlier turns"))
    for question, response in row.history[left_out:]:
        fields += [("question", question), ("response", response)]
    fields += [("instruction", row.instruction), ("input", row.input), ("output", row.output)]
    return fields if any(text.strip() for _, text in fields) else []


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
