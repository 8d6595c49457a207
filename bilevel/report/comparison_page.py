"""The page that shows several runs side by side, and the same table as plain text."""

from itertools import groupby
from pathlib import Path

from bilevel.report.comparison import Comparison, Group
from bilevel.report.intervals import EXPLANATION
from bilevel.report.lines import Picture, line_picture
from bilevel.report.measurements import measurements
from bilevel.report.page import UNSET, write_page
from bilevel.report.run_parts import duration
from bilevel.report.table import align, method_title

MOST_LINES = 12
BAND = "Bands are the intervals of the table."


def comparison_text(comparison: Comparison) -> str:
    """The table of results as aligned text, then what tells the groups apart."""
    lines = [
        (line.group, line.method, str(line.runs), *(" ".join(cell).rstrip() for cell in line.cells))
        for line in comparison.lines()
    ]
    parts = [align(("runs", "method", "seeds"), comparison.columns, lines), EXPLANATION]
    if comparison.differences:
        letters = tuple(group.letter for group in comparison.groups)
        settings = [
            (key, *(UNSET if value is None else value for value in values))
            for key, values in comparison.differences.items()
        ]
        parts.append(align(("differs", *letters), (), settings))
    return "\n\n".join(parts)


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the page.

    Args:
        comparison: from `compare`.
        path: the file; its folder exists.
    """
    groups = comparison.groups
    runs = [(group, run) for group in groups for run in group.runs]
    write_page(
        path,
        "comparison.html",
        {
            "title": f"Comparison of {len(runs)} runs",
            "facts": [f"{len(groups)} setting{'s' if len(groups) > 1 else ''}", f"{len(runs)} runs"],
            "columns": comparison.columns,
            "lines": [
                (name, list(lines)) for name, lines in groupby(comparison.lines(), lambda line: line.group)
            ],
            "explanation": EXPLANATION,
            "pictures": _pictures(comparison),
            "letters": [group.letter for group in groups],
            "differences": [
                (key, *(UNSET if value is None else value for value in values))
                for key, values in comparison.differences.items()
            ],
            "runs": [
                (
                    str(run.folder),
                    group.letter,
                    str(run.summary.get("seed", "–")),
                    duration(run.summary["seconds"]) if "seconds" in run.summary else "–",
                    str(run.environment.get("device_kind", "–")),
                    str(run.environment.get("packages", {}).get("bilevel-lm", "–")),
                )
                for group, run in runs
            ],
            "common": list(comparison.common.items()),
        },
    )


def _pictures(comparison: Comparison) -> list[Picture]:
    """Of several groups the main method of each, of one group all its methods."""
    groups = comparison.groups
    if len(groups) == 1:
        series = [(groups[0], method, method_title(method)) for method in groups[0].methods]
    else:
        series = [(group, group.runs[0].main, _series_name(comparison, group)) for group in groups]
    metrics = {
        str(number): [line for run in group.runs for line in run.metrics.get(method, ())]
        for number, (group, method, _) in enumerate(series)
    }
    pictures = []
    for one in measurements(metrics):
        lines = [
            line
            for number, (group, method, name) in enumerate(series[:MOST_LINES])
            if (line := group.curve(method, one.key, name, number)) is not None
        ]
        caption = one.caption
        if any(line.low is not None for line in lines):
            caption = f"{caption} {BAND}"
        if len(series) > MOST_LINES:
            caption = f"{caption} The first {MOST_LINES} of {len(series)}."
        picture = line_picture(lines, one.key, one.title, caption)
        if picture is not None:
            pictures.append(picture)
    return pictures


def _series_name(comparison: Comparison, group: Group) -> str:
    mains = {group.runs[0].main for group in comparison.groups}
    name = comparison.name(group)
    return name if len(mains) == 1 else f"{name} · {method_title(group.runs[0].main)}"
