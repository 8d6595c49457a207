"""What tasks say of a run's methods: their numbers in its results, and a section of its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bilevel.evaluation.measured import FOLDER, read_measured
from bilevel.evaluation.section import evaluation_section, evaluation_text
from bilevel.evaluation.task import PreparedTask
from bilevel.report.sections import write_section
from bilevel.report.table import Column, method_title, result_columns

WHOSE = "all methods"


def task_numbers(
    tasks: Sequence[PreparedTask], results: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """The main numbers of tasks for a method's line of the results, by `TASK/METRIC`."""
    return {
        f"{task.name}/{metric.name}": results[task.name][metric.name]
        for task in tasks
        for metric in task.task.kind.metrics
        if metric.main
    }


def leave_evaluation(folder: Path, methods: Iterable[str], tasks: Sequence[PreparedTask]) -> str:
    """Adds to a run's report what its methods' models made of tasks, beside one another.

    Args:
        folder: the run folder, of a run whose methods are all finished.
        methods: those that ran.
        tasks: what their models were asked.

    Returns:
        The same as a table in plain text, "" without tasks.
    """
    if not tasks:
        return ""
    names = [task.name for task in tasks]
    found = {method_title(method): read_measured(folder / FOLDER / method, names) for method in methods}
    write_section(folder, WHOSE, evaluation_section(found))
    return evaluation_text(found)


def without_tasks(results: Mapping[str, Mapping[str, float | None]]) -> tuple[Column, ...]:
    """Columns of a run's results but for those of tasks, which have a table of their own."""
    return tuple(column for column in result_columns(results.values()) if "/" not in column.key)
