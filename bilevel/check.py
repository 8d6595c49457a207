"""Checks the hypergradient of a run at its last checkpoint: `python -m bilevel.check RUN_DIR`.

The run's estimator says how the trusted rows' loss changes with the weights. The check lets training say it: the next
steps are taken many times over, with the weights moved a little along random directions. One step ahead an estimator
that describes the next step must agree in every digit that counts; further ahead it shows what looking no further
costs. Others are checked at the same point when they are named.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bilevel.core import ESTIMATORS, EstimatorSettings, check_hypergradient
from bilevel.core.reference import Reference
from bilevel.errors import InputError
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.remade import job_of_folder
from bilevel.runs.standing import standing
from bilevel.tool import run_tool

_FAR = 10
"""Steps over which looking one step ahead shows."""
_SETTLE = 50


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 for bad input."""
    return run_tool(_parser(), _check, arguments)


def _check(options: argparse.Namespace) -> None:
    enable_compilation_cache()
    unknown = [name for name in options.hypergradient if name not in ESTIMATORS]
    if unknown:
        raise InputError(f"--hypergradient {unknown[0]}: choose among {', '.join(ESTIMATORS)}")
    run = standing(options.folder, job_of_folder(options.folder, options.made_by))
    if run.note:
        print(f"note: {run.note}", file=sys.stderr)
    print(f"{options.folder}, after step {run.step}", flush=True)
    horizons = options.horizon or list(dict.fromkeys((run.lower_steps, _FAR)))
    references: dict[int, Reference] = {}
    for settings in (run.estimator, *map(EstimatorSettings, options.hypergradient)):
        for horizon in horizons:
            began = time.monotonic()
            try:
                found = check_hypergradient(
                    run.problem,
                    settings,
                    run.point,
                    lower_steps=run.lower_steps,
                    horizon=horizon,
                    settle=options.settle,
                    directions=options.directions,
                    reference=references.get(horizon),
                )
            except ValueError as error:
                raise InputError(f"{settings.name}: {error}") from error
            references[horizon] = found.reference
            ahead = "the next step" if horizon == 1 else f"the next {horizon} steps"
            print(f"\n{settings.name}, against {ahead} ({time.monotonic() - began:.0f} s)")
            print(found, flush=True)


def _parser() -> argparse.ArgumentParser:
    what, _, more = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m bilevel.check", description=f"{what.partition(':')[0]}. {more}"
    )
    parser.add_argument(
        "folder", type=Path, metavar="RUN_DIR", help="a run folder, also of a run that goes on"
    )
    parser.add_argument(
        "--hypergradient",
        action="append",
        default=[],
        metavar="NAME",
        help="another estimator to check at the same point, by its defaults; may be given several times",
    )
    parser.add_argument(
        "--made-by",
        metavar="FILE.py:FUNCTION",
        help="for a run of bilevel.run: a function without arguments that returns bilevel.job(...) of what ran",
    )
    parser.add_argument(
        "--horizon",
        type=_positive,
        action="append",
        metavar="STEPS",
        help="steps of training to compare with; may be given several times (default: as many as the run takes "
        f"between two moves of the weights, and {_FAR})",
    )
    parser.add_argument(
        "--settle",
        type=_positive,
        default=_SETTLE,
        metavar="STEPS",
        help="steps at fixed weights in which second copies and carried directions find their places before they are "
        f"read (default: {_SETTLE})",
    )
    parser.add_argument(
        "--directions",
        type=_positive,
        default=8,
        metavar="NUMBER",
        help="random directions to compare along (default: 8)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
