"""From a command line to a configuration: over a preset, over a file that a run left, or over a run's own."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from bilevel.errors import InputError
from bilevel.runs.config_file import FILE, plain_config, read_config
from bilevel.runs.run_options import RunOptions

Config = TypeVar("Config")


class NothingToRun(Exception):
    """The command line asks for help, or cannot be read; all is said.

    Attributes:
        code: the process's exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def parse(experiment: str, presets: Mapping[str, Config], arguments: Sequence[str]) -> Config:
    """The configuration that a command line stands for.

    Args:
        experiment: the experiment's name.
        presets: configurations by name, the first one the default.
        arguments: flags. Where configurations have a field `run` of `RunOptions`: with `--config FILE` they change
            what the file says instead of a preset; with `--resume FOLDER` they must agree with what that run was told.

    Raises:
        InputError: a file or folder that cannot be used, or flags that contradict each other.
        NothingToRun: help was asked for, or the parser refused a flag.
    """
    default: Any = _preset(presets, _value_of("--preset", arguments))
    if run_options(default) is None:
        return _parse_flags(experiment, default, arguments)
    file, folder = _value_of("--config", arguments), _value_of("--resume", arguments)
    stored = None
    if folder is not None:
        default = stored = _read(_run_folder(Path(folder)), experiment, presets)
    if file is not None:
        if _value_of("--preset", arguments) is not None:
            raise InputError("--preset and --config both say what other flags change: leave one of them out")
        default = _read(Path(file), experiment, presets)
    config = _parse_flags(experiment, default, arguments)
    if stored is None or folder is None:
        return config
    where = _run_folder(Path(folder))
    _check_agreement(config, stored, where)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, resume=where, run_dir=None))


def run_options(config: Any) -> RunOptions | None:
    """The field `run` of a configuration, None where it has none."""
    options = getattr(config, "run", None)
    return options if isinstance(options, RunOptions) else None


def read_run(folder: Path, experiment: str, presets: Mapping[str, Config]) -> Config:
    """The configuration of a run from its folder.

    Raises:
        InputError: no run folder of this experiment, or one that another version wrote.
    """
    return _read(_run_folder(folder), experiment, presets)


def _parse_flags(experiment: str, default: Config, arguments: Sequence[str]) -> Config:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(default),
                default=default,
                args=list(arguments),
                prog=f"python -m experiments.{experiment}",
            )
    except SystemExit as exit_:
        if complaint.getvalue():
            print(f"error: {_one_line(complaint.getvalue())}", file=sys.stderr)
        raise NothingToRun(int(exit_.code or 0)) from None


def _read(path: Path, experiment: str, presets: Mapping[str, Config]) -> Config:
    kind = type(next(iter(presets.values())))
    return read_config(path, kind, experiment, defaults=lambda raw: _preset(presets, raw.get("preset")))


def _preset(presets: Mapping[str, Config], name: Any) -> Config:
    """The named preset; an unknown one is left to the parser, which lists the choices."""
    return presets[name] if name in presets else next(iter(presets.values()))


def _run_folder(folder: Path) -> Path:
    """The folder itself where `latest` points to it: another run may take its name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; name one of a run that was stopped, as in runs/NAME")
    return folder.parent / folder.readlink() if folder.is_symlink() else folder


def _check_agreement(config: Any, stored: Any, folder: Path) -> None:
    given, own = (_flat(plain_config(value)) for value in (config, stored))
    different = [
        f"{key} is {own.get(key)} in {folder / FILE} and {given.get(key)} here"
        for key in dict.fromkeys([*own, *given])
        # How often a run is saved changes nothing that comes out of it.
        if own.get(key) != given.get(key) and not key.startswith("run.")
    ]
    if config.run.run_dir is not None and config.run.run_dir.resolve() != folder.resolve():
        different.append(f"--resume {folder} continues there, not in --run-dir {config.run.run_dir}")
    if different:
        raise InputError(
            f"{'; '.join(different)}: leave such flags out to continue that run, or begin a new one without --resume"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """What stands after a flag; the parser, which comes later, refuses a flag without anything."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
    return found


def _one_line(box: str) -> str:
    """The parser's message without its frame: errors of flags read like all others."""
    lines = [line.strip(" │╭╮╰╯─") for line in box.splitlines()[1:]]
    message = " ".join(line for line in lines if line)
    return message.partition(" For full helptext")[0] + " (see --help)"
