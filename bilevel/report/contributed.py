"""Sections that methods added to a run, drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel.report.bars import bar_picture
from bilevel.report.label_table import LONGEST_LABEL
from bilevel.report.lines import Line, Picture, line_picture
from bilevel.report.measurements import is_number
from bilevel.report.row_text import short
from bilevel.report.sections import Chart, Section, Table
from bilevel.report.table import method_title

LISTED_LINES = 200
DRAWN_SERIES = 12


def contributed(sections: Sequence[tuple[str, Section]]) -> list[dict[str, Any]]:
    """What the template shows of each section: title, method, text, pictures and tables."""
    return [
        {
            "title": section.title,
            "method": method_title(method),
            "text": section.text,
            "pictures": _pictures(section.charts, f"section-{number}"),
            "tables": [_table(table) for table in section.tables],
        }
        for number, (method, section) in enumerate(sections)
    ]


def _pictures(charts: Sequence[Chart], name: str) -> list[Picture]:
    found = (_picture(chart, f"{name}-{number}") for number, chart in enumerate(charts))
    return [picture for picture in found if picture is not None]


def _picture(chart: Chart, name: str) -> Picture | None:
    series = [
        _line(short(label, LONGEST_LABEL), points, number)
        for number, (label, points) in enumerate(list(chart.series.items())[:DRAWN_SERIES])
    ]
    caption = chart.caption
    if len(chart.series) > DRAWN_SERIES:
        caption = f"{caption} The first {DRAWN_SERIES} of {len(chart.series)} series.".strip()
    if chart.kind == "bars":
        return bar_picture(series, name, chart.title, caption, chart.x, chart.y, chart.places)
    return line_picture(series, name, chart.title, caption, chart.x, chart.y)


def _line(name: str, points: Sequence[Sequence[Any]], style: int) -> Line:
    width = max(map(len, points), default=2)
    values = [[np.nan if one is None else one for one in point] for point in points]
    x, y, *ends = np.array(values, np.float64).reshape(-1, width).T
    low, high = ends or (None, None)
    return Line(name, x, y, low, high, style)


def _table(table: Table) -> Mapping[str, Any]:
    return {
        "title": table.title,
        "columns": table.columns,
        "lines": [[_cell(cell) for cell in line] for line in table.lines[:LISTED_LINES]],
        "caption": table.caption,
        "left_out": max(0, len(table.lines) - LISTED_LINES),
    }


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if not is_number(value):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
