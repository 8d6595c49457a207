"""What a method left: its line of the results, and the files about its rows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bilevel.data import Row, source_of, write_rows
from bilevel.data.documents import SOURCE
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import write_weights
from bilevel.weighting.statistics import effective_sample_size, separation_auc

SELECTED = "selected.jsonl"
EXTREMES = "extremes.jsonl"
EXTREME_ROWS = 8


def summarise(
    test: Mapping[str, float] | None,
    weights: np.ndarray | None,
    rows: Sequence[Row],
    learned: bool,
) -> dict[str, float | None]:
    """Returns a method's line of `summary.json`; null where a number has no meaning.

    Args:
        test: `loss` (nats a token) and `exact_match` on held-out rows, or None without such rows.
        weights: a weight for each row of the pool, or None for a method that does not use the pool.
        rows: the pool.
        learned: whether the method chose the weights; only then does their AUC mean anything.
    """
    fault = np.array([bool(row.labels.get("fault")) for row in rows])
    hard = np.array([bool(row.labels.get("hard")) for row in rows])
    twin = np.array([bool(row.labels.get("duplicate")) for row in rows])
    line: dict[str, float | None] = {
        "test_loss": test["loss"] if test else None,
        "test_exact_match": test["exact_match"] if test else None,
        "fault_auc": None,
        "hard_auc": None,
        "effective_sample_size": None,
    }
    if weights is not None:
        line["effective_sample_size"] = float(effective_sample_size(weights))
    if weights is not None and learned:
        line["fault_auc"] = separation_auc(weights[fault], weights[~fault & ~hard & ~twin])
        line["hard_auc"] = separation_auc(weights[fault], weights[hard & ~fault])
        kinds = np.array([row.labels.get("fault", "") for row in rows])
        for kind in sorted(set(kinds) - {""}):
            line[f"{kind}_auc"] = separation_auc(weights[kinds == kind], weights[~fault & ~hard & ~twin])
    return line


def write_row_results(
    folder: Path, rows: Sequence[Row], signals: Mapping[str, np.ndarray], selected: np.ndarray
) -> None:
    """Writes `weights.parquet`, `selected.jsonl`, and the heaviest and lightest rows as `extremes.jsonl`.

    Args:
        folder: the run folder.
        rows: the pool.
        signals: columns by name, `weight` among them.
        selected: positions of the selected rows, best first.
    """
    labels = sorted({name for row in rows for name in row.labels})
    texts = {name: [row.labels.get(name, "") for row in rows] for name in labels}
    if any(SOURCE in row.extra for row in rows):
        texts[SOURCE] = [source_of(row) for row in rows]
    write_weights(folder / WEIGHTS, {"id": [row.id for row in rows], **signals, **texts})
    chosen = [rows[position] for position in selected]
    weights = [float(signals["weight"][position]) for position in selected]
    write_rows(folder / SELECTED, chosen, weight=weights)
    _write_extremes(folder, rows, signals)


def _write_extremes(folder: Path, rows: Sequence[Row], signals: Mapping[str, np.ndarray]) -> None:
    """Texts of the rows that a report shows, so that it can be written again from the folder alone."""
    order = np.argsort(-signals["weight"], kind="stable")
    listed = 0 if np.ptp(signals["weight"]) == 0 else min(EXTREME_ROWS, len(order) // 2)
    positions = [*order[:listed], *order[::-1][:listed]]
    columns = {
        name: [_number(values[position]) for position in positions] for name, values in signals.items()
    }
    ends = ["heaviest"] * listed + ["lightest"] * listed
    write_rows(folder / EXTREMES, [rows[position] for position in positions], end=ends, **columns)


def _number(value: np.number) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
