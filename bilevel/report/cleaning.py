"""What a hyper-cleaning benchmark found, as a report's section and lines of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bilevel.report.sections import Chart, Section

_POINTS = 50


class Found(NamedTuple):
    """What a method found with one seed.

    Attributes:
        accuracy: on held-out rows, after each outer step.
        auc: chance that a right label weighs more than a wrong one, after each; None for a method without weights.
        seconds: that it took.
    """

    accuracy: Float[np.ndarray, " steps"]
    auc: Float[np.ndarray, " steps"] | None
    seconds: float


def cleaning_lines(found: Mapping[str, Sequence[Found]]) -> dict[str, dict[str, float | None]]:
    """Means over seeds, by method."""
    return {
        name: {
            "test_accuracy": float(np.mean([one.accuracy[-1] for one in runs])),
            "wrong_label_auc": _mean([one.auc[-1] for one in runs if one.auc is not None]),
            "seconds": float(np.mean([one.seconds for one in runs])),
        }
        for name, runs in found.items()
    }


def cleaning_section(lead: str, found: Mapping[str, Sequence[Found]]) -> Section:
    """Accuracy and wrong labels found, by outer step.

    Args:
        lead: a sentence on what was run.
        found: by method, for each seed.
    """
    right = {name: _curve([one.accuracy for one in runs]) for name, runs in found.items()}
    curves = {name: [one.auc for one in runs if one.auc is not None] for name, runs in found.items()}
    auc = {name: _curve(each) for name, each in curves.items() if each}
    caption = "Chance that a right label weighs more than a wrong one; 0.5 is guessing."
    return Section(
        "Hyper-cleaning",
        lead,
        charts=(
            Chart("Accuracy on held-out digits", right, "outer step", "share of right answers"),
            Chart("Wrong labels found", auc, "outer step", "AUC", caption),
        ),
    )


def _curve(runs: Sequence[np.ndarray]) -> list[tuple[int, float]]:
    mean = np.mean(runs, axis=0)
    steps = np.unique(np.linspace(1, len(mean), min(_POINTS, len(mean))).astype(int))
    return [(int(step), float(mean[step - 1])) for step in steps]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
