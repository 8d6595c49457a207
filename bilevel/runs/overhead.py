"""What each method cost beside uniform fine-tuning, as its lines of `timings.json` add up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bilevel.report.table import Column, align, method_title
from bilevel.runs.timing import read_timings


def overhead_table(folder: Path, methods: Sequence[str]) -> str:
    """A table of seconds by method, compiling apart.

    Args:
        folder: the run folder.
        methods: those of the run; their times are given as multiples of that of `uniform`.
    """
    parts = [part for attempt in read_timings(folder) for part in attempt]
    lines = []
    for method in methods:
        own = [part for part in parts if part.name == f"{method_title(method)}: train"]
        seconds, compiling = (sum(getattr(part, of) for part in own) for of in ("seconds", "compiling"))
        lines.append((method, seconds - compiling, compiling))
    uniform = {method: seconds for method, seconds, _ in lines}.get("uniform")
    columns = (
        Column("", "training, s", digits=1),
        Column("", "compiling, s", digits=1),
        Column("", "of uniform"),
    )
    cells = [
        (
            method_title(method),
            columns[0].text(seconds),
            columns[1].text(compiling),
            columns[2].text(seconds / uniform if uniform else None),
        )
        for method, seconds, compiling in lines
    ]
    return align(("method",), columns, cells)
