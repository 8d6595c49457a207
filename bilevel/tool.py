"""The shell of commands on run folders: `python -m bilevel.check`, `bilevel.attribute`, `bilevel.report`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from bilevel.errors import InputError
from bilevel.started import stand_behind_installed


def run_tool(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a command line and returns its exit code: 0, or 2 for bad input, which is said in one line.

    Args:
        parser: of the options.
        work: what is done with them.
        arguments: of the command line; by default the process's own.
    """
    options = parser.parse_args(arguments)
    stand_behind_installed()
    try:
        work(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
