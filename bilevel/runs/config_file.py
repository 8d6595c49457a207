"""A run's configuration as YAML beside its results, and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically
from bilevel.storage.plain import Mismatch, from_plain, to_plain

Config = TypeVar("Config")

FILE = "config.yaml"
EXPERIMENT_KEY = "experiment"
"""Names the experiment, above its configuration."""


def write_config(folder: Path, config: Any, experiment: str | None = None) -> None:
    """Writes nested dataclasses to `config.yaml`, in the order of their fields.

    Args:
        folder: the run folder.
        config: a dataclass of numbers, text, paths, enums, None, sequences, mappings and such dataclasses.
            Fields with the metadata `FLAG_ONLY` are left out.
        experiment: whose configuration this is, written above it.

    Raises:
        TypeError: a value has no plain form.
    """
    plain = plain_config(config)
    named = {} if experiment is None else {EXPERIMENT_KEY: experiment}
    text = yaml.safe_dump(named | plain, sort_keys=False, allow_unicode=True, width=110)
    write_atomically(folder / FILE, text)


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries, as `config.yaml` holds it.

    Raises:
        TypeError: a value has no plain form.
    """
    return to_plain(config, type(config))


def read_config(
    path: Path,
    kind: type[Config],
    experiment: str | None = None,
    defaults: Callable[[dict[str, Any]], Config | None] = lambda raw: None,
) -> Config:
    """Reads a configuration back into the dataclass that it was written from.

    Args:
        path: a YAML file, or a run folder with `config.yaml`.
        kind: the dataclass.
        experiment: who reads; a file that names another experiment is refused.
        defaults: given the file's content, where fields that it does not name come from; by default from the
            dataclass.

    Returns:
        The configuration, equal to the one written.

    Raises:
        InputError: no such file, broken YAML, another experiment's file, a key that the dataclass does not know or
            that stands twice, a missing one, or a value that it cannot be; one line with the key, the line it
            stands in, and the key that was probably meant.
    """
    path = path / FILE if path.is_dir() else path
    raw = read_raw_config(path)
    written_by = raw.pop(EXPERIMENT_KEY, experiment)
    if experiment is not None and written_by != experiment:
        raise InputError(
            f"{path}: belongs to the experiment {written_by!r}, not to {experiment!r}: "
            f"run python -m experiments.{written_by}"
        )
    try:
        return from_plain(raw, kind, "", defaults(raw))
    except Mismatch as error:
        line = _lines(path).get(error.place)
        where = f"{path}:{line}" if line else f"{path}"
        raise InputError(f"{where}: {error}") from error


def read_raw_config(path: Path) -> dict[str, Any]:
    """Reads a configuration as plain dictionaries, for whoever does not know its dataclass.

    Args:
        path: a YAML file, or a run folder with `config.yaml`.
    """
    path = path / FILE if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        twice = _repeated(yaml.compose(text, yaml.SafeLoader))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; name the folder of a run, or its {FILE}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name a YAML file") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: broken YAML ({' '.join(str(error).split())}); restore the file") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds {type(raw).__name__}, not a mapping; restore the file")
    if twice is not None:
        raise InputError(
            f"{path}:{twice.start_mark.line + 1}: {twice.value} stands there a second time; keep one of the two"
        )
    return raw


def _lines(path: Path) -> dict[str, int]:
    """The line in which each key of a YAML file stands."""
    lines: dict[str, int] = {}

    def visit(node: yaml.Node | None, place: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = f"{place}.{key.value}" if place else str(key.value)
                lines[inner] = key.start_mark.line + 1
                visit(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                lines[f"{place}[{number}]"] = value.start_mark.line + 1
                visit(value, f"{place}[{number}]")

    visit(yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader), "")
    return lines


def _repeated(node: yaml.Node | None) -> yaml.Node | None:
    """The first key that its mapping has already; a YAML reader would keep the last in silence."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                return key
            seen.add(key.value)
            if (found := _repeated(value)) is not None:
                return found
    if isinstance(node, yaml.SequenceNode):
        return next((found for item in node.value if (found := _repeated(item)) is not None), None)
    return None
