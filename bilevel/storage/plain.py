"""Dataclasses as plain values (dictionaries, lists, numbers, text), and back."""

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CLASS_KEY = "class"
"""Names the chosen class where a field may hold one of several dataclasses."""
FLAG_ONLY = {"flag_only": True}
"""Metadata of a dataclass's field that says how to run rather than what: it has no plain form."""


class Mismatch(Exception):
    """The file and the dataclass disagree.

    Args:
        place: the key, as in `training.steps`; "" for the file as a whole.
        what: the disagreement.
    """

    def __init__(self, place: str, what: str) -> None:
        super().__init__(f"{place or 'the file'} {what}")
        self.place = place


def to_plain(value: Any, hint: Any) -> Any:
    """The plain form of a value.

    Args:
        value: a dataclass of numbers, text, paths, enums, None, sequences, mappings and such dataclasses. Fields with
            the metadata `FLAG_ONLY` are left out.
        hint: its type as declared; where that is one of several dataclasses, the form names which.

    Raises:
        TypeError: a value has no plain form.
    """
    hint = _without_none(hint)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {
            f.name: to_plain(getattr(value, f.name), hints[f.name])
            for f in dataclasses.fields(value)
            if not _is_flag_only(f)
        }
        several = len(_dataclasses_of(hint)) > 1
        return {CLASS_KEY: type(value).__name__, **fields} if several else fields
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        item_hint = typing.get_args(hint)[-1] if typing.get_args(hint) else Any
        return {key: to_plain(item, item_hint) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [to_plain(item, _item_hint(hint, position)) for position, item in enumerate(value)]
    raise TypeError(f"a configuration holds plain values; {type(value).__name__} has no plain form")


def from_plain(raw: Any, hint: Any, place: str = "", default: Any = None) -> Any:
    """The value whose plain form this is.

    Args:
        raw: the plain form.
        hint: the type as declared.
        place: where it stands, as in `training.steps`, for messages.
        default: a dataclass's fields come from here where `raw` does not name them, and else from its own defaults.

    Raises:
        Mismatch: a key that a dataclass does not know, a missing one, or a value that it cannot be.
    """
    members = typing.get_args(hint) if _is_union(hint) else (hint,)
    if raw is None and type(None) in members:
        return None
    choices = _dataclasses_of(hint)
    if choices and isinstance(raw, dict):
        return _build_dataclass(raw, choices, place, default)
    for member in members:
        origin = typing.get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, enum.Enum):
            if raw in origin.__members__:
                return origin[raw]
        elif isinstance(origin, type) and issubclass(origin, Path) and isinstance(raw, str):
            return origin(raw)
        elif origin in (tuple, list) or origin is Sequence:
            if isinstance(raw, list):
                items = [
                    from_plain(item, _item_hint(member, i), f"{place}[{i}]") for i, item in enumerate(raw)
                ]
                return items if origin is list else tuple(items)
        elif isinstance(raw, dict) and isinstance(origin, type) and issubclass(origin, Mapping):
            item_hint = typing.get_args(member)[-1] if typing.get_args(member) else Any
            return {key: from_plain(item, item_hint, f"{place}.{key}") for key, item in raw.items()}
        elif origin is float and isinstance(raw, int | float) and not isinstance(raw, bool):
            return float(raw)
        elif origin is float and str not in members and (number := _exponent(raw)) is not None:
            return number
        elif _accepts(member, origin, raw):
            return raw
    raise Mismatch(place, f"cannot be {raw!r}{_allowed(members)}")


def _build_dataclass(raw: dict[str, Any], choices: list[type], place: str, default: Any) -> Any:
    kind = choices[0]
    if len(choices) > 1:
        named = [choice for choice in choices if choice.__name__ == raw.get(CLASS_KEY)]
        if not named:
            names = ", ".join(choice.__name__ for choice in choices)
            raise Mismatch(place, f"must name its {CLASS_KEY}, one of {names}")
        kind = named[0]
        raw = {key: item for key, item in raw.items() if key != CLASS_KEY}
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    prefix = f"{place}." if place else ""
    for key in raw:
        if key not in fields:
            raise Mismatch(f"{prefix}{key}", f"is no option of {kind.__name__}{_meant(key, fields, prefix)}")
        if _is_flag_only(fields[key]):
            raise Mismatch(f"{prefix}{key}", "is a flag of the command line, no option of a file")
    given = {f.name: getattr(default, f.name) for f in fields.values()} if isinstance(default, kind) else {}
    required = [name for name, field in fields.items() if not _has_default(field) and name not in given]
    if missing := [name for name in required if name not in raw]:
        raise Mismatch(f"{prefix}{missing[0]}", "is missing")
    read = {key: from_plain(item, hints[key], f"{prefix}{key}", given.get(key)) for key, item in raw.items()}
    try:
        return kind(**{**given, **read})
    except ValueError as error:
        raise Mismatch(place, f"is impossible: {error}") from error


def _meant(key: Any, fields: Mapping[str, Any], prefix: str) -> str:
    close = difflib.get_close_matches(str(key).replace("-", "_"), fields, 1)
    return f" (meant is probably {prefix}{close[0]})" if close else f" (it has {', '.join(fields)})"


def _allowed(members: Sequence[Any]) -> str:
    values = [
        value for m in members if typing.get_origin(m) is typing.Literal for value in typing.get_args(m)
    ]
    return f": it is one of {', '.join(map(str, values))}" if values else ""


def _exponent(raw: Any) -> float | None:
    """A number such as 1e-4, which YAML takes for text because it has no point."""
    try:
        return float(raw) if isinstance(raw, str) else None
    except ValueError:
        return None


def _is_flag_only(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("flag_only"))


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _dataclasses_of(hint: Any) -> list[type]:
    members = typing.get_args(hint) if _is_union(hint) else (hint,)
    return [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]


def _without_none(hint: Any) -> Any:
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0] if _is_union(hint) and len(members) == 1 else hint


def _item_hint(hint: Any, position: int) -> Any:
    arguments = () if _is_union(hint) else typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments and arguments[-1] is not Ellipsis:
        return arguments[position] if position < len(arguments) else Any
    return arguments[0] if arguments else Any


def _accepts(member: Any, origin: Any, raw: Any) -> bool:
    if member is Any:
        return True
    if origin is typing.Literal:
        return raw in typing.get_args(member)
    if origin is int:
        return isinstance(raw, int) and not isinstance(raw, bool)
    return isinstance(origin, type) and isinstance(raw, origin)
