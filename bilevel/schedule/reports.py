"""What is kept of solver steps until their numbers are logged, and what the numbers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from bilevel.core.hypergradient import Diagnostics
from bilevel.core.solver import StepReport
from bilevel.data import Dataset
from bilevel.weighting.statistics import effective_sample_size

Kept = Mapping[str, Any]

_SAW, _FACTOR, _PART = "saw ", "factor ", "part "
_WORST = {"residual": np.max, "curvature": np.min}
"""Diagnostics of which the worst of several steps is kept; of the others it is the mean."""


class NonFiniteError(RuntimeError):
    """Too many steps in a row could not be applied because a loss or gradient was NaN or infinite."""


def kept_of(report: StepReport) -> Kept:
    """What of a step's report goes into the numbers, as arrays by name that a checkpoint can hold."""
    kept = {"lower": report.lower.value, "finite": report.finite}
    if report.row_weights is not None:
        kept |= {"row_id": report.row_id, "weights": report.row_weights}
    if report.row_losses is not None:
        kept["losses"] = report.row_losses.total
    kept |= {f"{_FACTOR}{name}": weights for name, weights in (report.factors or {}).items()}
    if report.diagnostics is not None:
        for each in fields(Diagnostics):
            value = getattr(report.diagnostics, each.name)
            if each.name == "parts":
                kept |= {f"{_PART}{name}": norm for name, norm in (value or {}).items()}
            elif value is not None:
                kept[f"{_SAW}{each.name}"] = value
    return kept


def numbers_of(reports: Sequence[Kept], rows: int | None) -> dict[str, float]:
    """The numbers that are logged of some steps.

    Args:
        reports: of at least one step, on the host.
        rows: how many the batches are drawn from, where weights move: the effective sample size of the rows that were
            seen is scaled to them. None where weights are frozen.
    """
    applied = [report for report in reports if report["finite"]] or reports
    numbers = {"lower_loss": float(np.mean([report["lower"] for report in applied]))}
    if rows is not None:
        numbers |= _effective_rows(reports, rows)
    for name in dict.fromkeys(name for report in reports for name in report):
        if name.startswith((_SAW, _PART)):
            key = name.removeprefix(_SAW)
            key = f"hypergradient_norm/{name.removeprefix(_PART)}" if name.startswith(_PART) else key
            # Steps that were not applied are counted as such; their NaN would hide all others.
            among = reports if key == "finite" else applied
            values = [report[name] for report in among if name in report]
            if values:
                numbers[key] = float(_WORST.get(key, np.mean)(np.asarray(values, np.float64)))
    return numbers


def _effective_rows(reports: Sequence[Kept], rows: int) -> dict[str, float]:
    """Effective sample sizes of the weights, and of each factor of a product."""
    names = {"weights": "effective_sample_size"} | {
        name: f"effective_sample_size/{name.removeprefix(_FACTOR)}"
        for report in reports
        for name in report
        if name.startswith(_FACTOR)
    }
    found = {}
    for name, key in names.items():
        seen = [report[name][report["row_id"] >= 0] for report in reports if name in report]
        if seen:
            weights = np.concatenate(seen)
            # Rows are drawn without replacement, so those seen are a sample of all that could be.
            found[key] = float(effective_sample_size(weights)) / weights.size * rows
    return found


def stop_when_stuck(in_a_row: int, reports: Sequence[Kept], rows: Dataset, patience: int) -> None:
    """Ends a run in which too many steps in a row could not be applied.

    Args:
        in_a_row: such steps.
        reports: of the last steps, on the host.
        rows: the lower level's.
        patience: how many are too many.

    Raises:
        NonFiniteError: they are; the message names the rows whose loss is not finite.
    """
    if in_a_row < patience:
        return
    bad = next(report for report in reversed(reports) if not report["finite"])
    if "losses" not in bad:
        raise NonFiniteError(
            f"{in_a_row} steps in a row gave a loss or gradient that is not finite and were not applied. Lower the "
            "learning rate, clip gradients, or look at the last batches."
        )
    ids, losses = np.ravel(bad["row_id"]), np.ravel(bad["losses"])
    guilty = ids[~np.isfinite(losses) & (ids >= 0)]
    which = rows.names(guilty if guilty.size else ids[ids >= 0])
    what = (
        "rows whose loss is not finite" if guilty.size else "rows of the last such batch, all of finite loss"
    )
    raise NonFiniteError(
        f"{in_a_row} steps in a row gave a loss or gradient that is not finite and were not applied; {what}: "
        f"{', '.join(which)}. Lower the learning rate, clip gradients, or look at these rows."
    )
