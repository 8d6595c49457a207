"""Rows by label in numbers: how many, how much weight, which losses."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from bilevel.data.rows import LABELS as ROW_LABELS
from bilevel.report.row_groups import RowGroup, group_rows
from bilevel.report.row_text import short
from bilevel.runs.weights import RANK

LABELS = ("fault", "hard", "duplicate")
LOSSES = {"loss_start": "loss, start", "loss_end": "loss, end"}
LONGEST_LABEL = 60

_OF_A_STAGE = re.compile(r"(weight|loss)_\d+")


def label_groups(columns: Mapping[str, np.ndarray]) -> list[RowGroup]:
    """The groups of the rows of `weights.parquet`; one group where they carry no labels."""
    labels = {name: columns[name].tolist() for name in LABELS if name in columns}
    return group_rows(labels, len(columns["weight"]))


def label_table(
    columns: Mapping[str, np.ndarray], groups: Sequence[RowGroup]
) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: name, share of rows, share of weight, median weight, mean losses and signals.

    Args:
        columns: of `weights.parquet`. A numeric column that is none of ours is a signal of some method, and shown, but
            for the weights and losses of each stage, which would need a table of their own.
        groups: from `label_groups`.
    """
    weights = columns["weight"].astype(np.float64)
    relative = weights / (weights.mean() or 1.0)
    known = {"id", "weight", RANK, *LOSSES, *ROW_LABELS}
    signals = [
        name
        for name, values in columns.items()
        if name not in known and values.dtype.kind in "fiu" and not _OF_A_STAGE.fullmatch(name)
    ]
    measured = [*(name for name in LOSSES if name in columns), *signals]
    headings = ["rows", "share of rows", "share of weight", "median weight"]
    headings += [LOSSES.get(name, name.replace("_", " ")) for name in measured]
    lines = [
        [
            short(group.name, LONGEST_LABEL),
            f"{len(group.positions) / len(relative):.1%}",
            f"{relative[group.positions].sum() / relative.sum():.1%}" if relative.sum() else "–",
            f"{np.median(relative[group.positions]):.3g}",
            *(_mean(columns[name][group.positions]) for name in measured),
        ]
        for group in groups
    ]
    return headings, lines


def _mean(values: np.ndarray) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.3f}" if len(known) else "–"
