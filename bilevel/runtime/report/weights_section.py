"""Which rows weigh how much: the picture, the table of labels, the heaviest and the lightest rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel.data.rows import Row
from bilevel.runtime.report.pictures import weight_distribution
from bilevel.runtime.report.row_groups import RowGroup, group_rows

LABELS = ("fault", "hard", "duplicate")
LISTED_ROWS = 8
LONGEST_TEXT = 600


def weights_section(columns: Mapping[str, np.ndarray], texts: Mapping[str, Row]) -> dict[str, Any]:
    """Everything that the page says about weights.

    Args:
        columns: of `weights.parquet`, empty where the run wrote none.
        texts: rows by id, as far as they are known.

    Returns:
        For the template: `distribution` (a picture or None), `groups` (lines of the table of labels),
        `heaviest` and `lightest` rows, and `all_equal`, which says that there is nothing to list.
    """
    if not columns or not len(columns["id"]):
        return {"distribution": None, "groups": [], "heaviest": [], "lightest": [], "all_equal": False}
    ids = columns["id"]
    weights = columns["weight"].astype(np.float64)
    relative = weights / weights.mean() if weights.mean() > 0 else weights
    groups = group_rows(_labels(columns, texts), len(ids))
    names = np.full(len(ids), "", dtype=object)
    for group in groups if len(groups) > 1 else ():
        names[group.positions] = group.name

    def card(position: int) -> dict[str, Any]:
        losses = (columns[name][position] for name in ("loss_start", "loss_end") if name in columns)
        text = texts.get(ids[position])
        fields = ("instruction", "input", "output") if text is not None else ()
        return {
            "id": ids[position],
            "weight": f"{relative[position]:.3g}",
            "group": names[position],
            "losses": " → ".join("–" if np.isnan(loss) else f"{loss:.3f}" for loss in losses),
            "texts": [(field, _short(getattr(text, field))) for field in fields if getattr(text, field)],
        }

    order = np.argsort(-relative, kind="stable").tolist()
    listed = min(LISTED_ROWS, len(order) // 2)
    all_equal = bool(np.ptp(relative) == 0)
    return {
        "distribution": weight_distribution(relative, groups),
        "groups": _group_table(columns, relative, groups) if len(groups) > 1 else [],
        "heaviest": [] if all_equal else [card(position) for position in order[:listed]],
        "lightest": [] if all_equal else [card(position) for position in order[::-1][:listed]],
        "all_equal": all_equal,
    }


def _labels(columns: Mapping[str, np.ndarray], texts: Mapping[str, Row]) -> dict[str, Sequence[str | None]]:
    """Label columns of the table of weights, or else what the rows themselves carry."""
    written = {name: columns[name].tolist() for name in LABELS if name in columns}
    if written:
        return written
    rows = [texts.get(identity) for identity in columns["id"]]
    return {name: [row.labels.get(name) if row is not None else None for row in rows] for name in LABELS}


def _group_table(
    columns: Mapping[str, np.ndarray], relative: np.ndarray, groups: Sequence[RowGroup]
) -> list[dict[str, str]]:
    def mean(name: str, group: RowGroup) -> str:
        values = columns[name][group.positions] if name in columns else np.array([np.nan])
        known = values[~np.isnan(values)]
        return f"{known.mean():.3f}" if len(known) else "–"

    return [
        {
            "name": group.name,
            "rows": f"{len(group.positions) / len(relative):.1%}",
            "weight": f"{relative[group.positions].sum() / relative.sum():.1%}" if relative.sum() else "–",
            "median": f"{np.median(relative[group.positions]):.3g}",
            "loss_start": mean("loss_start", group),
            "loss_end": mean("loss_end", group),
        }
        for group in groups
    ]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT].rstrip() + " …"
