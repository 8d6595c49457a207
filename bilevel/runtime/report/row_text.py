"""What a report shows of a row's texts: all fields, each cut to a length that keeps pages short."""

import json
from collections.abc import Mapping
from typing import Any

FIELDS = ("messages", "instruction", "input", "output")
LONGEST_TEXT = 600


def row_texts(line: Mapping[str, Any], longest: int = LONGEST_TEXT) -> list[tuple[str, str]]:
    """Returns (field, text) of a row's fields that hold something.

    Args:
        line: a row as it stands in a file of the run.
        longest: characters of a field that are shown.
    """
    found = [(field, _text(line.get(field))) for field in FIELDS]
    return [(field, short(text, longest)) for field, text in found if text]


def short(text: str, longest: int) -> str:
    """Returns the text, or its beginning and how long it is."""
    if len(text) <= longest:
        return text
    return f"{text[:longest].rstrip()} … ({len(text):,} characters)"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(
            f"{turn.get('role', '?')}: {turn.get('content', '')}" if isinstance(turn, dict) else str(turn)
            for turn in value
        )
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
