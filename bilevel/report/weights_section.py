"""Which rows weigh how much: pictures, the table of labels, the heaviest and the lightest rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel.report.label_table import LABELS, LONGEST_LABEL, LOSSES, label_groups, label_table
from bilevel.report.row_text import row_texts, short
from bilevel.report.weight_pictures import weight_distribution, weights_and_losses


def weights_section(
    columns: Mapping[str, np.ndarray], extremes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Everything that the page says about weights.

    Args:
        columns: of `weights.parquet`, empty where the run wrote none.
        extremes: lines of `extremes.jsonl`.

    Returns:
        For the template: `pictures`, `groups` (lines of the table of labels) with their `headings`, `heaviest`
        and `lightest` rows, and `all_equal`, which says that there is nothing to list.
    """
    if not columns or not len(columns["id"]):
        empty: list[Any] = []
        return {
            "pictures": empty,
            "groups": empty,
            "headings": empty,
            "heaviest": empty,
            "lightest": empty,
            "all_equal": False,
        }
    weights = columns["weight"].astype(np.float64)
    mean = weights.mean() if weights.mean() > 0 else 1.0
    relative = weights / mean
    groups = label_groups(columns)
    losses = columns.get("loss_end")
    pictures = [
        weight_distribution(relative, groups),
        None if losses is None else weights_and_losses(relative, losses, groups),
    ]
    headings, lines = label_table(columns, groups)
    return {
        "pictures": [picture for picture in pictures if picture is not None],
        "groups": lines,
        "headings": headings,
        "heaviest": [_card(line, mean) for line in extremes if line.get("end") == "heaviest"],
        "lightest": [_card(line, mean) for line in extremes if line.get("end") == "lightest"],
        "all_equal": bool(np.ptp(relative) == 0),
    }


def _card(line: Mapping[str, Any], mean: float) -> dict[str, Any]:
    """What is shown of one row."""
    losses = [line.get(name) for name in LOSSES]
    shown = " → ".join("–" if loss is None else f"{loss:.3f}" for loss in losses) if any(losses) else ""
    group = next(
        (line["fault"].replace("_", " ") if name == "fault" else name for name in LABELS if line.get(name)),
        "clean" if any(name in line for name in LABELS) else "",
    )
    return {
        "id": line["id"],
        "weight": f"{line['weight'] / mean:.3g}",
        "group": short(group, LONGEST_LABEL),
        "losses": shown,
        "texts": row_texts(line),
    }
