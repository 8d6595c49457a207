"""Rows by what their labels say: the clean ones, each fault, and what is no fault but must be told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CLEAN, HARD, DUPLICATE, OTHER = "clean", "hard", "duplicate", "other faults"
MOST_FAULTS = 6


@dataclass(frozen=True)
class RowGroup:
    """Rows of one label.

    Attributes:
        name: what the reader sees.
        kind: "plain", "fault" or "special", which decides the colour.
        positions: where its rows stand among all rows.
    """

    name: str
    kind: str
    positions: np.ndarray


def group_rows(labels: Mapping[str, Sequence[str | None]], count: int) -> list[RowGroup]:
    """Sorts rows into groups.

    A row belongs to its fault; without one it is hard, a duplicate or clean, the first that holds.

    Args:
        labels: the columns `fault`, `hard` and `duplicate`, as far as there are any; "" and None mean no.
        count: how many rows there are.

    Returns:
        Groups that are not empty: clean, faults by size, hard, duplicate. Without labels one group holds all.
    """
    if not any(label for column in labels.values() for label in column):
        return [RowGroup("all rows", "plain", np.arange(count))] if count else []
    missing = [""] * count
    names = np.full(count, CLEAN, dtype=object)
    kinds = np.full(count, "plain", dtype=object)
    for position, (fault, hard, duplicate) in enumerate(
        zip(*(labels.get(name, missing) for name in ("fault", "hard", "duplicate")), strict=True)
    ):
        if fault:
            names[position], kinds[position] = fault.replace("_", " "), "fault"
        elif hard or duplicate:
            names[position], kinds[position] = HARD if hard else DUPLICATE, "special"
    groups = []
    for kind in ("plain", "fault", "special"):
        found, sizes = np.unique(names[kinds == kind].astype(str), return_counts=True)
        ordered = found[np.argsort(-sizes, kind="stable")] if kind == "fault" else found[::-1]
        for name in ordered[:MOST_FAULTS]:
            groups.append(RowGroup(str(name), kind, np.flatnonzero((kinds == kind) & (names == name))))
        if len(ordered) > MOST_FAULTS:
            rest = (kinds == kind) & np.isin(names.astype(str), ordered[MOST_FAULTS:])
            groups.append(RowGroup(OTHER, kind, np.flatnonzero(rest)))
    return groups
