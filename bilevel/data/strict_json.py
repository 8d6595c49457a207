"""Rows as JSON that every reader of the standard takes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")


def strict_json(value: Any, indent: int | None = None) -> str:
    r"""A value as JSON by the standard.

    >>> strict_json({"quality": float("nan"), "name": "caf\xe9"})
    '{"quality": null, "name": "caf\xe9"}'

    Numbers that are not finite become null: the standard has no word for them, and what Python writes in their place
    breaks other readers. What JSON does not know (a date of a Parquet file, say) is written as text. Half of a
    surrogate pair, which UTF-8 cannot hold, stays what it is, by its number.
    """
    how: dict[str, Any] = {"default": str, "allow_nan": False, "indent": indent}
    try:
        text = json.dumps(value, ensure_ascii=False, **how)
    except ValueError:
        value = _finite(value)
        text = json.dumps(value, ensure_ascii=False, **how)
    return json.dumps(value, **how) if _HALF_OF_A_PAIR.search(text) else text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
