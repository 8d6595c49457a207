"""A command: parse flags over a preset, run, end with an exit code."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from bilevel.errors import InputError
from bilevel.runtime.timing import Timings
from bilevel.schedule import NonFiniteError
from models.errors import ModelError

Config = TypeVar("Config")


def run_command(
    experiment: str,
    presets: Mapping[str, Config],
    run: Callable[[Config], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs an experiment and returns its exit code: 0, 1 for a run that failed, 2 for bad input, 130 interrupted.

    Args:
        experiment: its module's name.
        presets: configurations by name, the first one the default; flags change the chosen one's fields.
        run: the experiment.
        arguments: command line, by default this process's.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config = tyro.cli(
                type(next(iter(presets.values()))),
                default=_chosen_preset(presets, arguments),
                args=arguments,
                prog=f"python -m experiments.{experiment}",
            )
    except SystemExit as exit_:  # the parser's own: help asked for, or flags it refuses
        if complaint.getvalue():
            print(f"error: {_one_line(complaint.getvalue())}", file=sys.stderr)
        return int(exit_.code or 0)
    try:
        with Timings():
            run(config)
    except (InputError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _one_line(box: str) -> str:
    """The parser's message without its frame: errors of flags read like all others."""
    lines = [line.strip(" │╭╮╰╯─") for line in box.splitlines()[1:]]
    message = " ".join(line for line in lines if line)
    return message.partition(" For full helptext")[0] + " (see --help)"


def _chosen_preset(presets: Mapping[str, Config], arguments: Sequence[str]) -> Config:
    """The preset that --preset names; an unknown one is left to the parser, which lists the choices."""
    for position, argument in enumerate(arguments):
        name = argument.removeprefix("--preset=")
        if argument == "--preset" and position + 1 < len(arguments):
            name = arguments[position + 1]
        if argument.startswith("--preset") and name in presets:
            return presets[name]
    return next(iter(presets.values()))
