"""What the columns of a row say, whatever their form."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bilevel.data.rows import Row
from bilevel.errors import InputError

SYSTEM = ("system", "system_prompt")
"""Columns that hold a system message in every form."""


class Texts(NamedTuple):
    """What a row's columns say; see `Row`."""

    instruction: str
    input: str
    output: str
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    unlearned: tuple[int, ...] = ()


class Unusable(NamedTuple):
    """Why a row cannot be used, and what its owner can do about it."""

    reason: str
    remedy: str


def texts_of(row: Row) -> Texts:
    """What a row says."""
    return Texts(row.instruction, row.input, row.output, row.system, row.history, row.unlearned)


def with_system(texts: Texts, columns: Mapping[str, Any]) -> Texts:
    """The texts with the system message of a column of its own, where they bring none."""
    return texts if texts.system else texts._replace(system=_system(columns))


def says_system(row: Row) -> bool:
    """Whether a row's other columns already hold its system message."""
    return row.system == _system(row.extra)


def text_cell(place: str, column: str, value: Any) -> str:
    """The text of a cell, "" for null.

    Raises:
        InputError: it is not text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InputError(
            f"{place}: column {column!r} must be text, this is {kind}; write it as a JSON string"
        )
    return value


def _system(columns: Mapping[str, Any]) -> str:
    found = (columns[name] for name in SYSTEM if name in columns)
    return next((text for text in found if isinstance(text, str) and text.strip()), "")
