"""What a method left: its line of the results, and the files about its rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.data import Dataset, Row, source_of, text_rows, write_rows
from bilevel.data.documents import SOURCE
from bilevel.data.strict_json import strict_json
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import RANK, write_weights
from bilevel.storage.atomic import write_atomically
from bilevel.storage.piecewise import write_each
from bilevel.weighting.statistics import effective_sample_size, separation_auc

SELECTED = "selected.jsonl"
EXTREMES = "extremes.jsonl"
EXTREME_ROWS = 8


def summarise(
    test: Mapping[str, float] | None, weights: np.ndarray | None, pool: Dataset, learned: bool
) -> dict[str, float | None]:
    """A method's line of `summary.json`; null where a number has no meaning.

    Args:
        test: `loss` (nats a token) and perhaps `exact_match` on held-out rows, or None without such rows.
        weights: a weight for each row of the pool, or None for a method that does not use the pool.
        pool: the rows.
        learned: whether the method chose the weights; only then does their AUC mean anything.
    """
    rows = text_rows(pool)
    line: dict[str, float | None] = {
        "test_loss": test["loss"] if test else None,
        "test_exact_match": test.get("exact_match") if test else None,
        "fault_auc": None,
        "hard_auc": None,
        "effective_sample_size": None if weights is None else float(effective_sample_size(weights)),
    }
    if weights is None or not learned or not rows:
        return line
    fault, hard, twin = (
        np.array([bool(row.labels.get(name)) for row in rows]) for name in ("fault", "hard", "duplicate")
    )
    line["fault_auc"] = separation_auc(weights[fault], weights[~fault & ~hard & ~twin])
    line["hard_auc"] = separation_auc(weights[fault], weights[hard & ~fault])
    kinds = np.array([row.labels.get("fault", "") for row in rows])
    for kind in sorted(set(kinds) - {""}):
        line[f"{kind}_auc"] = separation_auc(weights[kinds == kind], weights[~fault & ~hard & ~twin])
    return line


def write_row_results(
    folder: Path, pool: Dataset, signals: Mapping[str, np.ndarray], selected: np.ndarray | None
) -> None:
    """Writes `weights.parquet`, `selected.jsonl`, and the heaviest and lightest rows as `extremes.jsonl`.

    Rows that are no text are named by their ids alone.

    Args:
        folder: the run folder.
        pool: the rows.
        signals: columns by name, `weight` among them.
        selected: positions of the selected rows, best first; None for a method that selects none.

    Raises:
        NotWrittenError: one of the files could not be written; the others were.
    """
    ids, rows = pool.names(np.arange(len(pool))), text_rows(pool)
    labels = sorted({name for row in rows for name in row.labels})
    texts = {name: [row.labels.get(name, "") for row in rows] for name in labels}
    if any(SOURCE in row.extra for row in rows):
        texts[SOURCE] = [source_of(row) for row in rows]
    columns: dict[str, Any] = {"id": ids, **signals, **texts, **_ranks(len(pool), selected)}
    pieces: list[tuple[Path, Callable[[], object]]] = [
        (folder / WEIGHTS, lambda: write_weights(folder / WEIGHTS, columns))
    ]
    if selected is not None:
        weights = [_number(signals["weight"][position]) for position in selected]
        pieces.append((folder / SELECTED, lambda: _write_selected(folder, ids, rows, selected, weights)))
    if rows:
        pieces.append((folder / EXTREMES, lambda: _write_extremes(folder, rows, signals)))
    write_each(*pieces)


def _write_selected(
    folder: Path,
    ids: Sequence[str],
    rows: Sequence[Row],
    selected: np.ndarray,
    weights: Sequence[float | None],
) -> None:
    if rows:
        write_rows(folder / SELECTED, [rows[position] for position in selected], weight=weights)
        return
    lines = [{"id": ids[place], "weight": weight} for place, weight in zip(selected, weights, strict=True)]
    write_atomically(folder / SELECTED, "".join(strict_json(line) + "\n" for line in lines))


def _ranks(rows: int, selected: np.ndarray | None) -> dict[str, np.ndarray]:
    """The place of each selected row among them, from 1; 0 for the others."""
    if selected is None:
        return {}
    ranks = np.zeros(rows, np.int64)
    ranks[selected] = np.arange(1, len(selected) + 1)
    return {RANK: ranks}


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
