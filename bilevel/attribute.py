"""Scores each row by what it did to a run's model, and lets retraining judge: `python -m bilevel.attribute RUN_DIR`.

The run's training is taken again from its start, on the same batches, with each row's weight held at what the run left,
and the loss of the trusted rows at its end is differentiated with respect to all weights. Of a run that moved its
weights on the way these are scores of the retraining, not of the run itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bilevel.attribution.along_the_run import scores_along_the_run
from bilevel.attribution.bank import Bank
from bilevel.attribution.budget import budget_of, said
from bilevel.attribution.controls import CONTROLS, control_scores
from bilevel.attribution.leaving import section, verdict_table, warnings_of, write_scores, write_verdict
from bilevel.attribution.retraining import Retraining, retraining
from bilevel.attribution.verify import Verdict, check_subsets, verify
from bilevel.attribution.weights_of_run import weights_of_run
from bilevel.attribution.whole_run_scores import RowScores, WholeRunScores
from bilevel.core import ESTIMATORS, EstimatorSettings
from bilevel.core.unroll import Footprint, Plan
from bilevel.core.unroll.plan import PLACES
from bilevel.errors import InputError
from bilevel.report import write_report
from bilevel.report.sections import write_section
from bilevel.report.table import method_title
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.job import Job
from bilevel.runs.opening import check_same_inputs
from bilevel.runs.progress import Progress
from bilevel.runs.remade import job_of_folder
from bilevel.runs.run_record import has_begun
from bilevel.runs.timing import read_timings
from bilevel.tool import run_tool

FOLDER = "attribution"
WHOLE_RUN = "whole_run"
_USUAL = ("optimizer_aware", *CONTROLS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 2 for bad input."""
    return run_tool(_parser(), _attribute, arguments)


def _attribute(options: argparse.Namespace) -> None:
    enable_compilation_cache()
    folder: Path = options.folder
    others = _named_estimators(options.estimators)
    job = job_of_folder(folder, options.made_by)
    if not has_begun(folder):
        raise InputError(
            f"{folder}: the run has not begun, and its inputs are not written down; run it first"
        )
    check_same_inputs(folder, job)
    name = options.method or job.main
    weights = None if options.weights == "uniform" else weights_of_run(folder, job, name)
    given = retraining(job, name, weights)
    if options.verify is not None:
        check_subsets(len(given.pool), options.verify, options.drop)
    asked = WholeRunScores(given, options.queries, options.tokens)
    footprint = asked.footprint()
    budget = budget_of(options.memory, options.host, options.disk, folder)
    plan = asked.plan(footprint, budget, options.last)
    print(_described(folder, job, name, given, plan, footprint, asked, options.queries), flush=True)
    if options.plan:
        return
    left = folder / FOLDER / name
    began = time.monotonic()
    found = _scores(asked, plan, left)
    write_scores(left, given, plan, found, name, time.monotonic() - began)
    for line in warnings_of(found):
        print(f"warning: {line}", file=sys.stderr)
    verdict = None
    if options.verify is not None:
        verdict = _verified(given, found, left, others, options)
        write_verdict(left, verdict)
        _print_verdict(verdict)
    write_section(folder, name, section(given, found, verdict))
    print(f"scores: {left / 'scores.parquet'}; report: {write_report(folder)}")


def _scores(asked: WholeRunScores, plan: Plan, left: Path) -> RowScores:
    rounds = -(-len(asked.trusted) // asked.at_once) if asked.queries == "each" else 1
    bar = Progress(rounds * (plan.segment_runs + plan.segments), "whole run")
    try:
        return asked.scores(plan, left, lambda what, segment: bar.advance(1))
    finally:
        bar.close()


def _verified(
    given: Retraining, found: RowScores, left: Path, others: Sequence[str], options: argparse.Namespace
) -> Verdict:
    scores, in_units = {WHOLE_RUN: found.scores}, {WHOLE_RUN: True}
    controls = None
    for other in others:
        if other in CONTROLS:
            if controls is None:
                end = WholeRunScores(given).programs.end_of(given.table, given.run, 1)
                controls = control_scores(given, end.iterate.inner, options.seed)
            scores[other], in_units[other] = controls[other][None], False
            continue
        along = _along_the_run(given, other)
        if along is not None:
            scores[other], in_units[other] = along[None], True
    bank = Bank(given, left / "bank", options.at_once)
    return verify(
        bank,
        scores,
        given.weights,
        subsets=options.verify,
        drop=options.drop,
        in_units=in_units,
        seed=options.seed,
        progress=lambda count: Progress(count, "retraining"),
    )


def _along_the_run(given: Retraining, name: str) -> np.ndarray | None:
    """An estimator's scores; None, with a line for the user, where it has none on this run."""
    bar = Progress(given.run.steps, name)
    try:
        found = scores_along_the_run(given, EstimatorSettings(name), lambda step: bar.advance(1))
    except ValueError as error:
        print(f"note: {name} is left out: {error}", file=sys.stderr)
        return None
    finally:
        bar.close()
    if np.all(np.isfinite(found)):
        return found
    print(f"note: {name} is left out: its scores are not finite on this run", file=sys.stderr)
    return None


def _print_verdict(verdict: Verdict) -> None:
    table = verdict_table(verdict)
    width = max(len(name) for name in (*verdict.of, table.columns[0]))
    print(f"\n{verdict.trainings} trainings; {verdict.subsets} subsets of {verdict.left_out} rows left out")
    print(f"{table.columns[0]:<{width}}  " + "  ".join(f"{column:>16}" for column in table.columns[1:]))
    for name, *cells in table.lines:
        shown = ("–" if cell is None else cell if isinstance(cell, str) else f"{cell:.4f}" for cell in cells)
        print(f"{name:<{width}}  " + "  ".join(f"{cell:>16}" for cell in shown))
    print(
        f"without as many random rows the loss rises by {verdict.random_removal:.4f} from {verdict.loss:.4f}\n"
    )


def _described(
    folder: Path,
    job: Job,
    name: str,
    given: Retraining,
    plan: Plan,
    footprint: Footprint,
    asked: WholeRunScores,
    queries: str,
) -> str:
    """What the derivative is of and what it takes, before it starts."""
    rounds = -(-len(asked.trusted) // asked.at_once) if queries == "each" else 1
    what = (
        f"each of {len(asked.trusted)} trusted rows"
        if queries == "each"
        else f"the mean of {len(asked.trusted)} trusted rows"
    )
    window = "" if plan.last is None else f", the last {plan.last} of them"
    kept = "records of all steps" if plan.keeps == "records" else f"starts of segments, {plan.starts} at once"
    where = "" if plan.keeps == "records" and plan.segments == 1 else f" ({plan.place})"
    lines = [
        f"{folder}, {method_title(name)}: {plan.steps} steps{window}, {len(given.pool)} rows of the pool, {what}",
        f"segments     {plan.segments} of {plan.segment} steps; kept: {kept}{where}",
    ]
    for place in PLACES:
        taken = plan.bytes_in(place, footprint)
        if taken:
            lines.append(f"{place:<12} {said(taken)}")
    # Each further round of queries sweeps and replays anew.
    runs = rounds * (
        plan.training_runs + (asked.at_once - 1) * (plan.training_runs - plan.segment_runs / plan.segments)
    )
    lines.append(f"training     {runs:.1f} runs' worth")
    seconds = _seconds_of_run(folder, name, job)
    if seconds is not None:
        lines.append(
            f"seconds      about {runs * seconds:,.0f}, at {seconds:,.1f} for the run's own training"
        )
    return "\n".join(lines)


def _seconds_of_run(folder: Path, name: str, job: Job) -> float | None:
    """How long the run's training took, compiling apart; None where it was not measured."""
    spent = [
        part.seconds - part.compiling
        for attempt in read_timings(folder)
        for part in attempt
        if part.name == f"{method_title(name)}: train"
    ]
    return sum(spent) or None


def _named_estimators(names: Sequence[str] | None) -> Sequence[str]:
    known = (*(name for name in ESTIMATORS if name not in (WHOLE_RUN, "unroll")), *CONTROLS)
    if names is None:
        return _USUAL
    chosen = known if "all" in names else names
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise InputError(f"--estimators {unknown[0]}: choose among all, {', '.join(known)}")
    return tuple(dict.fromkeys(chosen))


def _parser() -> argparse.ArgumentParser:
    what, _, more = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m bilevel.attribute", description=f"{what.partition(':')[0]}. {more}"
    )
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="a run folder")
    parser.add_argument("--plan", action="store_true", help="say what it takes, and start nothing")
    parser.add_argument("--method", metavar="NAME", help="whose training (default: the run's main method)")
    parser.add_argument(
        "--weights",
        choices=("run", "uniform"),
        default="run",
        help="at which weights rows are held: those that the run left, or one each (default: run)",
    )
    parser.add_argument(
        "--queries",
        choices=("mean", "each"),
        default="mean",
        help="the mean of the trusted rows, or each of them at its own price (default: mean)",
    )
    parser.add_argument("--tokens", action="store_true", help="score response tokens, too")
    parser.add_argument("--last", type=int, metavar="STEPS", help="differentiate the last steps alone")
    parser.add_argument(
        "--memory", metavar="BYTES", help="of each device, such as 40GiB (default: most of it)"
    )
    parser.add_argument("--host", metavar="BYTES", help="of the host besides (default: half of what is free)")
    parser.add_argument("--disk", metavar="BYTES", help="in the run's folder (default: half of what is free)")
    parser.add_argument(
        "--verify",
        type=int,
        metavar="SUBSETS",
        help="train again without so many random subsets, and compare",
    )
    parser.add_argument(
        "--drop",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the rows in a subset (default: 0.05)",
    )
    parser.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help=f"what else is judged: names of estimators, {', '.join(CONTROLS)}, or all (default: {' '.join(_USUAL)})",
    )
    parser.add_argument(
        "--at-once", type=int, default=8, metavar="NUMBER", help="trainings in one program (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of subsets and controls (default: 0)")
    parser.add_argument(
        "--made-by",
        metavar="FILE.py:FUNCTION",
        help="for a run of bilevel.run: a function without arguments that returns bilevel.job(...) of what ran",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
