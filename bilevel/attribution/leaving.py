"""What an attribution leaves in a run's folder: scores, steps, what retraining says, and a section of the report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from jaxtyping import Float

from bilevel.attribution.retraining import Retraining
from bilevel.attribution.verify import Verdict
from bilevel.attribution.whole_run_scores import RowScores
from bilevel.core.unroll import Plan
from bilevel.data import text_rows
from bilevel.report.row_text import short
from bilevel.report.sections import Chart, Section, Table
from bilevel.storage.atomic import write_atomically

SCORES, QUERIES, TOKENS, STEPS, SUMMARY, VERDICT = (
    "scores.parquet",
    "queries.npz",
    "tokens.npz",
    "steps.csv",
    "summary.json",
    "verdict.json",
)
_LISTED = 10
_TEXT = 300
_GROWTH = 10.0
"""A cotangent that has grown by more on its way back is a sign of a run that small changes tear apart."""


def write_scores(
    folder: Path, given: Retraining, plan: Plan, found: RowScores, method: str, seconds: float
) -> None:
    """Writes scores by row, of each query where there are several, and what each step added.

    Args:
        folder: of the attribution; made.
        given: the training.
        plan: how it was differentiated.
        found: the scores.
        method: whose training it is.
        seconds: that it took.
    """
    folder.mkdir(parents=True, exist_ok=True)
    score = found.scores.mean(axis=0)
    columns = {
        "id": given.pool.names(np.arange(len(given.pool))),
        "score": score,
        "weight": given.weights,
        "removal": removal(score, given.weights),
        "visits": given.seen,
    }
    pyarrow.parquet.write_table(pa.table(columns), folder / SCORES)
    if len(found.scores) > 1:
        names = given.trusted.names(np.arange(len(given.trusted)))
        np.savez(folder / QUERIES, scores=found.scores, trusted=np.array(names))
    if found.tokens is not None:
        np.savez(folder / TOKENS, scores=found.tokens.mean(axis=0), id=np.array(columns["id"]))
    lines = ["step,cotangent,scores"]
    for step, (cotangent, signal) in enumerate(zip(*_mean_traces(found), strict=True), start=1):
        if np.isfinite(cotangent):
            lines.append(f"{step},{cotangent:.8g},{signal:.8g}")
    write_atomically(folder / STEPS, "\n".join(lines) + "\n")
    summary = {
        "method": method,
        "queries": len(found.scores),
        "steps": plan.steps,
        "plan": asdict(plan),
        "training_runs": plan.training_runs,
        "seconds": seconds,
        "growth": growth(found),
    }
    write_atomically(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def write_verdict(folder: Path, verdict: Verdict) -> None:
    """Writes what retraining says."""
    write_atomically(folder / VERDICT, json.dumps(asdict(verdict), indent=1) + "\n")


def removal(score: Float[np.ndarray, " pool"], weights: Float[np.ndarray, " pool"]) -> np.ndarray:
    """By how much the trusted loss should change, to first order, without each row: - w_i score_i."""
    return -score * weights


def growth(found: RowScores) -> float:
    """How often the cotangent's norm at the run's beginning holds that at its end."""
    norms = _mean_traces(found)[0]
    norms = norms[np.isfinite(norms)]
    return float(norms[0] / norms[-1]) if len(norms) and norms[-1] > 0 else float("nan")


def warnings_of(found: RowScores) -> list[str]:
    """Lines on what a reader must know before trusting the scores."""
    said = []
    if not np.all(np.isfinite(found.scores)):
        said.append(
            "some scores are not finite: the run is too rough to be differentiated; lower its learning rate"
        )
    grown = growth(found)
    if grown > _GROWTH:
        said.append(
            f"the derivative grows {grown:,.0f} times on its way through the run: small changes are torn apart there, "
            "and scores may say more of noise than of rows; see whether retraining agrees (--verify), or lower the "
            "learning rate, enlarge the batch, or look at the last steps alone (--last)"
        )
    return said


def section(given: Retraining, found: RowScores, verdict: Verdict | None) -> Section:
    """The report's section: the rows that help and harm most, what each step added, what retraining says."""
    score = found.scores.mean(axis=0)
    effect = removal(score, given.weights)
    order = np.argsort(-effect, kind="stable")
    norms, signals = _mean_traces(found)
    steps = [step for step in range(len(norms)) if np.isfinite(norms[step])]
    charts = [
        Chart(
            "What each step added",
            {"scores": [(step + 1, float(signals[step])) for step in steps]},
            y="sum of absolute scores",
            caption="Early steps add much where training has not forgotten them.",
        ),
        Chart(
            "The derivative on its way back",
            {"norm": [(step + 1, float(norms[step])) for step in steps]},
            y="norm",
            caption="A norm that climbs steeply towards the first step is a sign of noise.",
        ),
    ]
    tables = [
        _rows("Rows that help most", given, effect, order[:_LISTED]),
        _rows("Rows that harm most", given, effect, order[::-1][:_LISTED]),
    ]
    if verdict is not None:
        tables.append(verdict_table(verdict))
    text = (
        "The derivative of the trusted loss at the end of the whole training with respect to each row's weight. "
        "Without a row, the trusted loss changes by the number beside it, to first order."
    )
    return Section("What each row did to the model", text, charts, tables)


def verdict_table(verdict: Verdict) -> Table:
    """What retraining says, a line for each set of scores."""
    lines = [
        (
            name,
            one.lds.value,
            f"{one.lds.low:.2f} to {one.lds.high:.2f}",
            one.removal,
            one.step,
            one.promised,
        )
        for name, one in verdict.of.items()
    ]
    return Table(
        "What retraining says",
        ("scores", "LDS", "95%", "without the best", "weight step", "promised"),
        lines,
        f"LDS: rank correlation of predicted and retrained losses over {verdict.subsets} random subsets of "
        f"{verdict.left_out} rows left out. Without the best {verdict.left_out} rows the trusted loss rises by so "
        f"much ({verdict.random_removal:.4g} without random ones). The weight step is the change of the loss when all "
        "weights move the same distance along minus the scores, and what the scores promised of it.",
    )


def _rows(title: str, given: Retraining, effect: np.ndarray, chosen: np.ndarray) -> Table:
    names, rows = given.pool.names(chosen), text_rows(given.pool)

    def text(row: int) -> str:
        if not rows:
            return ""
        parts = (rows[row].instruction, rows[row].input, rows[row].output)
        return short(" | ".join(part for part in parts if part.strip()), _TEXT)

    return Table(
        title,
        ("row", "without it", "weight", "text"),
        [
            (name, float(effect[row]), float(given.weights[row]), text(int(row)))
            for name, row in zip(names, chosen, strict=True)
        ],
    )


def _mean_traces(found: RowScores) -> tuple[np.ndarray, np.ndarray]:
    return found.cotangents.mean(axis=0), found.signals.mean(axis=0)
