"""Several runs side by side: `python -m experiments.compare RUN RUN ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bilevel.errors import InputError
from bilevel.report import compare, comparison_text, write_comparison
from bilevel.runs.command import run_command

NAME = "compare"


@dataclass(frozen=True)
class Compare:
    """Puts finished runs side by side, in a table here and on one page.

    Runs that differ by their seed alone are put together: their numbers become means with intervals, their curves means
    with bands.

        python -m experiments.compare runs/bds_alpaca-tiny-s0 runs/bds_alpaca-tiny-s1 runs/bds_alpaca-tiny-s2
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN RUN ...")] = ()
    """Run folders, two or more."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to write the page; by default comparison.html beside the first run's folder."""


def run(config: Compare) -> None:
    """Prints the table and writes the page."""
    comparison = compare(config.runs)
    out = config.out or config.runs[0].resolve().parent / "comparison.html"
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder; name another file with --out")
    if out.is_dir():
        raise InputError(f"{out}: this is a folder; name a file in it with --out")
    print(comparison_text(comparison))
    try:
        write_comparison(comparison, out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); name another file with --out"
        ) from error
    print(f"\ncomparison: {out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, {"default": Compare()}, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
