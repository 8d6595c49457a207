"""What the numbers of `metrics.jsonl` are called and mean; numbers that stand here unnamed are drawn as well."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["training", "weights", "hypergradient", "other"]

HIDDEN = frozenset({"step", "method", "seconds", "skipped_steps", "finite"})
"""Numbers that a report shows in words, or not at all."""


@dataclass(frozen=True)
class Measurement:
    """One number that a run logs.

    Attributes:
        key: its name in `metrics.jsonl`.
        title: what the reader sees.
        caption: one sentence for a reader who sees it for the first time.
        place: the part of the report that shows it.
    """

    key: str
    title: str
    caption: str
    place: Place


KNOWN = (
    Measurement(
        "lower_loss",
        "Lower level: training loss",
        "The loss that each method trains on, under its own weights.",
        "training",
    ),
    Measurement(
        "upper_loss",
        "Upper level: validation loss",
        "The loss on the trusted rows, which the weights answer to.",
        "training",
    ),
    Measurement(
        "effective_sample_size",
        "Effective sample size",
        "How many equally weighted rows the weights amount to; it falls when weight gathers on few rows.",
        "weights",
    ),
    Measurement(
        "hypergradient_norm",
        "Hypergradient: norm",
        "The length of the gradient that moves the weights.",
        "hypergradient",
    ),
    Measurement(
        "upper_gradient_norm",
        "Upper gradient: norm",
        "The length of the trusted loss's gradient in parameter space.",
        "hypergradient",
    ),
    Measurement(
        "direction_norm",
        "Direction: norm",
        "The length of the direction q along which rows are scored.",
        "hypergradient",
    ),
    Measurement(
        "stationarity",
        "Inner stationarity",
        "The lower level's gradient as a share of the upper one's: implicit estimators describe its zero.",
        "hypergradient",
    ),
    Measurement(
        "residual",
        "Linear system: relative residual",
        "What the solver of (H + damping) q = gradient left over, as a share of the gradient: 1 means nothing was "
        "solved.",
        "hypergradient",
    ),
    Measurement(
        "curvature",
        "Linear system: smallest curvature",
        "The smallest curvature met on the way; below zero the lower level is not at a minimum, and the solver stops.",
        "hypergradient",
    ),
    Measurement(
        "damping",
        "Linear system: damping",
        "What was added to every curvature; as large as the smallest it biases the answer.",
        "hypergradient",
    ),
)


def measurements(metrics: Mapping[str, Iterable[Mapping[str, Any]]]) -> list[Measurement]:
    """What some line of the metrics has a number for: the known measurements first, then all others.

    Numbers of a group, `group/name`, are drawn by the section that their method adds.

    Args:
        metrics: lines by method.
    """
    present = {
        key: None
        for lines in metrics.values()
        for line in lines
        for key, value in line.items()
        if key not in HIDDEN and is_number(value)
    }
    known = [measurement for measurement in KNOWN if measurement.key in present]
    named = {measurement.key for measurement in known}
    further = [
        Measurement(key, key.replace("_", " ").capitalize(), f"As logged under “{key}”.", "other")
        for key in present
        if key not in named and "/" not in key
    ]
    return [*known, *further]


def points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The (step, value) of the lines that have the number."""
    return [(line["step"], line[key]) for line in lines if is_number(line.get(key))]


def is_number(value: Any) -> bool:
    """Whether a value is a number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
