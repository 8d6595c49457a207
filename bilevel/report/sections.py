"""Sections that a method adds to its run's report, in `sections/`: what to draw, never how.

A method that measures something of its own (how a weight network's preferences move from stage to stage, which rows
were rewritten) describes it as tables and charts of plain numbers; the report draws them without knowing the method.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically

FOLDER = "sections"

Number = Any
"""Python's, or a scalar of NumPy's or JAX's."""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a line names the line.

    Attributes:
        title: what it shows.
        columns: a heading for each cell of a line.
        lines: cells; numbers are shown with four significant digits, None as a dash.
        caption: a sentence for a reader who sees it for the first time.
    """

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str | Number | None]]
    caption: str = ""

    def __post_init__(self) -> None:
        if uneven := [line for line in self.lines if len(line) != len(self.columns)]:
            raise ValueError(
                f"table {self.title!r}: a line has {len(uneven[0])} cells for {len(self.columns)} columns"
            )


@dataclass(frozen=True)
class Chart:
    """Named series of numbers over one axis.

    Attributes:
        title: what it shows.
        series: by name, points `(x, y)` in the order of x, or `(x, y, low, high)` with an interval; a y that is None
            leaves a gap. Hundreds of points are averaged for the picture.
        x: what the horizontal axis counts (`step`, `stage`).
        y: what the vertical axis shows, with its unit; "" where the title says it.
        caption: a sentence for a reader who sees it for the first time.
        kind: `lines`, or `bars` for few x.
        places: of bars, what x = 0, 1, 2, ... are called; by default they are numbers.
    """

    title: str
    series: Mapping[str, Sequence[Sequence[Number | None]]]
    x: str = "step"
    y: str = ""
    caption: str = ""
    kind: Literal["lines", "bars"] = "lines"
    places: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("lines", "bars"):
            raise ValueError(f"chart {self.title!r}: kind must be lines or bars, not {self.kind!r}")


@dataclass(frozen=True)
class Section:
    """One part of a report.

    Attributes:
        title: its heading.
        text: a paragraph above tables and charts.
        charts: pictures.
        tables: tables, below the pictures.
    """

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def write_section(run: Path, method: str, section: Section) -> None:
    """Writes a section into a run folder, in place of an earlier one of the same method and title.

    Args:
        run: the run folder.
        method: whose section it is.
        section: what it shows.

    Raises:
        ValueError: a number is not finite; say None for what is missing.
        TypeError: something in it is neither a number nor text.
    """
    text = json.dumps(
        {"method": method, **asdict(section)}, indent=1, ensure_ascii=False, allow_nan=False, default=_item
    )
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{_slug(method)}-{_slug(section.title)}.json", text + "\n")


def read_sections(run: Path) -> list[tuple[str, Section]]:
    """Reads the sections of a run folder back.

    Returns:
        Method and section, in the order of their files' names; nothing where no method wrote one.

    Raises:
        InputError: a file is no section.
    """
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            charts = [Chart(**chart) for chart in raw.pop("charts")]
            tables = [Table(**table) for table in raw.pop("tables")]
            found.append((raw.pop("method"), Section(charts=charts, tables=tables, **raw)))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(f"{path}: no section of a report ({error!r}); remove the file") from error
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "section"


def _item(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a section holds texts and numbers, not {type(value).__name__}")
