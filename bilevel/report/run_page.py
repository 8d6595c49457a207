"""The page that shows a run: what goes into it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.report.contributed import contributed
from bilevel.report.lines import Line, Picture, line_picture
from bilevel.report.measurements import measurements, points
from bilevel.report.page import flat, write_page
from bilevel.report.run_files import RunFiles, read_run
from bilevel.report.run_parts import (
    facts_line,
    findings,
    rejected_section,
    results_table,
    time_section,
    warnings,
)
from bilevel.report.table import method_title
from bilevel.report.weights_section import weights_section

FILE = "report.html"
LISTED_NOTICES = 100


def write_report(folder: Path) -> Path:
    """Writes `report.html` from what stands in a run's folder, whether the run has finished or not.

    Args:
        folder: the run folder.

    Returns:
        The page's path. It needs no other file and no network.

    Raises:
        InputError: this is no run folder, or a file in it is broken.
    """
    run = read_run(folder)
    write_page(folder / FILE, "run.html", _content(run))
    return folder / FILE


def _content(run: RunFiles) -> dict[str, Any]:
    pictures = _pictures(run.metrics, run.methods)
    return {
        "title": run.title,
        "facts": facts_line(run),
        "findings": findings(run),
        "warnings": warnings(run),
        "notices": run.facts.notices[:LISTED_NOTICES],
        "further_notices": max(0, len(run.facts.notices) - LISTED_NOTICES),
        **results_table(run.results),
        "curves": pictures,
        "weights": weights_section(run.weights, run.extremes),
        "sections": contributed(run.sections),
        "sets": run.facts.sets,
        **rejected_section(run.rejected),
        "time": time_section(run.timings),
        "config": flat(run.config),
        "environment": flat(run.environment),
    }


def _pictures(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], methods: Sequence[str]
) -> dict[str, list[Picture]]:
    """Curves of everything that was measured, by the part of the page that shows them."""
    drawn: dict[str, list[Picture]] = {"training": [], "weights": [], "hypergradient": [], "other": []}
    for one in measurements(metrics):
        lines = []
        for number, method in enumerate(methods):
            found = points(metrics.get(method, ()), one.key)
            if found:
                x, y = np.array(found, dtype=np.float64).T
                lines.append(Line(method_title(method), x, y, style=number))
        picture = line_picture(lines, one.key, one.title, one.caption)
        if picture is not None:
            drawn[one.place].append(picture)
    return drawn
