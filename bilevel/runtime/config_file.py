"""A run's configuration as YAML beside its results, and back."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from bilevel.errors import InputError
from bilevel.runtime.atomic import write_atomically

Config = TypeVar("Config")

FILE = "config.yaml"
CLASS_KEY = "class"
"""Names the chosen class where a field may hold one of several dataclasses."""


def write_config(folder: Path, config: Any) -> None:
    """Writes nested dataclasses to `config.yaml`, in the order of their fields.

    Args:
        folder: the run folder.
        config: a dataclass of numbers, text, paths, enums, None, sequences, mappings and such dataclasses.

    Raises:
        TypeError: a value has no plain form.
    """
    text = yaml.safe_dump(_plain(config, type(config)), sort_keys=False, allow_unicode=True, width=110)
    write_atomically(folder / FILE, text)


def read_config(folder: Path, kind: type[Config]) -> Config:
    """Reads `config.yaml` back into the dataclass that it was written from.

    Args:
        folder: the run folder.
        kind: the dataclass. A field that the file does not name takes its default.

    Returns:
        The configuration, equal to the one written.

    Raises:
        InputError: no such file, broken YAML, a key that the dataclass does not know, or a missing one.
    """
    path = folder / FILE
    raw = read_raw_config(folder)
    try:
        return _build(raw, kind, "")
    except _Mismatch as error:
        raise InputError(f"{path}: {error}; was it written by another version or experiment?") from error


def read_raw_config(folder: Path) -> dict[str, Any]:
    """Reads `config.yaml` as plain dictionaries, for whoever does not know its dataclass."""
    path = folder / FILE
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; name the folder of a run") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: broken YAML ({' '.join(str(error).split())}); restore the file") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds {type(raw).__name__}, not a mapping; restore the file")
    return raw


class _Mismatch(Exception):
    """The file and the dataclass disagree."""


def _plain(value: Any, hint: Any) -> Any:
    hint = _without_none(hint)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {f.name: _plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
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
        return {key: _plain(item, item_hint) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, _item_hint(hint, position)) for position, item in enumerate(value)]
    raise TypeError(f"a configuration holds plain values; {type(value).__name__} has no plain form")


def _build(raw: Any, hint: Any, place: str) -> Any:
    members = typing.get_args(hint) if _is_union(hint) else (hint,)
    if raw is None and type(None) in members:
        return None
    choices = _dataclasses_of(hint)
    if choices and isinstance(raw, dict):
        return _build_dataclass(raw, choices, place)
    for member in members:
        origin = typing.get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, enum.Enum):
            if raw in origin.__members__:
                return origin[raw]
        elif isinstance(origin, type) and issubclass(origin, Path) and isinstance(raw, str):
            return origin(raw)
        elif origin in (tuple, list) or origin is Sequence:
            if isinstance(raw, list):
                items = [_build(item, _item_hint(member, i), f"{place}[{i}]") for i, item in enumerate(raw)]
                return items if origin is list else tuple(items)
        elif isinstance(raw, dict) and isinstance(origin, type) and issubclass(origin, Mapping):
            item_hint = typing.get_args(member)[-1] if typing.get_args(member) else Any
            return {key: _build(item, item_hint, f"{place}.{key}") for key, item in raw.items()}
        elif origin is float and isinstance(raw, int | float) and not isinstance(raw, bool):
            return float(raw)
        elif _accepts(member, origin, raw):
            return raw
    raise _Mismatch(f"{place or 'the file'} cannot be {raw!r}")


def _build_dataclass(raw: dict[str, Any], choices: list[type], place: str) -> Any:
    kind = choices[0]
    if len(choices) > 1:
        named = [choice for choice in choices if choice.__name__ == raw.get(CLASS_KEY)]
        if not named:
            names = ", ".join(choice.__name__ for choice in choices)
            raise _Mismatch(f"{place} must name its {CLASS_KEY}, one of {names}")
        kind = named[0]
        raw = {key: item for key, item in raw.items() if key != CLASS_KEY}
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    prefix = f"{place}." if place else ""
    if unknown := [key for key in raw if key not in fields]:
        raise _Mismatch(f"{prefix}{unknown[0]} is no option of {kind.__name__}")
    required = [name for name, field in fields.items() if not _has_default(field)]
    if missing := [name for name in required if name not in raw]:
        raise _Mismatch(f"{prefix}{missing[0]} is missing")
    return kind(**{key: _build(item, hints[key], f"{prefix}{key}") for key, item in raw.items()})


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
