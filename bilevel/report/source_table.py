"""Mean weight of each source's rows, stage by stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bilevel.data import Dataset, source_of, text_rows
from bilevel.report.table import Column, align
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import read_weights


def source_table(folder: Path, pool: Dataset) -> str:
    """Mean weight of each source's documents after each stage, 1 being uniform.

    Args:
        folder: the run folder.
        pool: the documents.
    """
    columns = read_weights(folder / WEIGHTS)
    stages = sorted(
        (name for name in columns if name.startswith("weight_")),
        key=lambda name: int(name.rpartition("_")[2]),
    ) or ["weight"]
    sources = np.array([source_of(row) for row in text_rows(pool)], dtype=object)
    lines = []
    for name in sorted(set(sources)):
        own = sources == name
        means = [columns[stage][own].mean() / columns[stage].mean() for stage in stages]
        lines.append((name, str(own.sum()), *(f"{mean:.3f}" for mean in means)))
    headings = [Column(stage, stage.replace("_", ", stage ")) for stage in stages]
    return align(("source",), [Column("rows", "rows"), *headings], lines)
