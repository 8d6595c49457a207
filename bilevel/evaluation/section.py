"""What several models made of tasks, beside one another: a section of a report, and the same as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bilevel.evaluation.bootstrap import REPLICATES, Difference, Estimate, paired_difference
from bilevel.evaluation.measured import Measured
from bilevel.evaluation.metrics import Metric
from bilevel.evaluation.refusal import GROUP
from bilevel.report.sections import Chart, Section, Table
from bilevel.report.table import Column, align

TITLE = "Tasks"
INTERVALS = (
    f"Brackets are 95% bootstrap intervals over rows ({REPLICATES:,} draws of as many rows; of a share of 0 or 1, "
    "which draws cannot spread, Clopper and Pearson's)."
)
SIGNS = (
    "Each model less the first, on the same rows, with the interval of draws that take the same rows of both; rows "
    "where its own number is larger and smaller, and the p-value of the exact sign test that neither is likelier."
)

Found = Mapping[str, Mapping[str, Measured]]
"""What was measured, by model and task."""


class Compared(NamedTuple):
    """One model beside the first, in one metric of one task."""

    task: str
    metric: Metric
    model: str
    first: str
    difference: Difference

    @property
    def title(self) -> str:
        """What is compared: of exponentials the logarithm."""
        return f"log {self.metric.title}" if self.metric.exponential else self.metric.title


def evaluation_section(found: Found) -> Section:
    """Pictures, a table for each task, and the differences of models row by row.

    Args:
        found: by model and task; models are compared with the first.
    """
    tasks = _tasks(found)
    tables = [_task_table(task, found) for task in tasks]
    differences = list(compared(found))
    if differences:
        tables.append(_difference_table(differences))
    return Section(TITLE, INTERVALS, list(_charts(tasks, found)), tables)


def evaluation_text(found: Found) -> str:
    """The main numbers of every task and model as aligned text, then the differences of models."""
    lines = [
        (task, _heading(metric), model, metric.text(one.value), _range(metric, one), f"{one.rows:,}")
        for task in _tasks(found)
        for metric, model, one in _main_estimates(task, found)
    ]
    value, interval, rows = (Column(key, key) for key in ("value", "95% interval", "rows"))
    parts = [align(("task", "metric", "model"), (value, interval, rows), lines)]
    differences = [
        (one.task, one.title, f"{one.model} - {one.first}", *_difference_cells(one))
        for one in compared(found)
        if one.metric.main
    ]
    if differences:
        columns = [
            Column(key, key) for key in ("difference", "95% interval", "larger", "smaller", "p (signs)")
        ]
        parts.append(align(("task", "metric", "models"), columns, differences))
    return "\n\n".join(parts)


def compared(found: Found) -> Iterator[Compared]:
    """Every model beside the first, in every metric of every task that both saw the same rows of."""
    first, *others = found
    for task in _tasks(found):
        base = found[first].get(task)
        for model in others:
            other = found[model].get(task)
            if base is None or other is None or not _same_rows(base, other):
                continue
            for metric in base.metrics:
                difference = paired_difference(metric, other.columns, base.columns)
                yield Compared(task, metric, model, first, difference)


def _same_rows(one: Measured, other: Measured) -> bool:
    return one.fingerprint == other.fingerprint and one.ids == other.ids


def _tasks(found: Found) -> list[str]:
    return list(dict.fromkeys(task for of_model in found.values() for task in of_model))


def _main_estimates(task: str, found: Found) -> Iterator[tuple[Metric, str, Estimate]]:
    one = next(of_model[task] for of_model in found.values() if task in of_model)
    estimates = {model: of_model[task].estimates() for model, of_model in found.items() if task in of_model}
    for metric in one.metrics:
        if metric.main:
            for model, of_model in estimates.items():
                yield metric, model, of_model[metric.name]


def _charts(tasks: Sequence[str], found: Found) -> Iterator[Chart]:
    """A picture for each kind of task: its first metric, a bar a model."""
    kinds: dict[str, list[str]] = {}
    for task in tasks:
        kind = next(of_model[task].kind for of_model in found.values() if task in of_model)
        kinds.setdefault(kind, []).append(task)
    for some in kinds.values():
        metric = next(of_model[some[0]] for of_model in found.values() if some[0] in of_model).metrics[0]
        series = {
            model: [
                (place, *of_model[task].estimates()[metric.name][:3])
                for place, task in enumerate(some)
                if task in of_model
            ]
            for model, of_model in found.items()
        }
        yield Chart(
            metric.title,
            {model: points for model, points in series.items() if points},
            x="",
            y=metric.unit,
            caption="Lines are 95% intervals.",
            kind="bars",
            places=some,
        )


def _task_table(task: str, found: Found) -> Table:
    measured = {model: of_model[task] for model, of_model in found.items() if task in of_model}
    first = next(iter(measured.values()))
    lines = []
    for model, one in measured.items():
        named = {model: one} | {f"{model}, {value}": part for value, part in one.groups(GROUP).items()}
        for name, part in named.items():
            estimates = part.estimates()
            cells = [
                f"{metric.text(estimates[metric.name].value)} {_range(metric, estimates[metric.name])}"
                for metric in part.metrics
            ]
            lines.append([name, *cells, len(part.ids)])
    headings = ["model", *(_heading(metric) for metric in first.metrics), "rows"]
    said = "; ".join(dict.fromkeys(notice for one in measured.values() for notice in one.notices))
    return Table(task, headings, lines, f"{first.kind.replace('_', ' ').capitalize()}: {said}.")


def _difference_table(differences: Sequence[Compared]) -> Table:
    headings = ["task", "metric", "model", "difference", "95% interval", "larger", "smaller", "p"]
    lines = [
        [one.task, one.title, f"{one.model} - {one.first}", *_difference_cells(one)] for one in differences
    ]
    return Table("Differences", headings, lines, SIGNS)


def _difference_cells(one: Compared) -> tuple[str, ...]:
    metric, found = one.metric, one.difference
    signed = metric.text(found.value)
    return (
        signed if signed.startswith(("-", "0.000")) else f"+{signed}",
        _range(metric, found),
        f"{found.larger:,}",
        f"{found.smaller:,}",
        f"{found.p_value:.2g}",
    )


def _range(metric: Metric, found: Estimate | Difference) -> str:
    return f"[{metric.text(found.low)}, {metric.text(found.high)}]"


def _heading(metric: Metric) -> str:
    return Column(metric.name, metric.title, metric.better).heading
