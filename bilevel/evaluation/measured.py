"""What one model made of one task, row by row; its files, and its numbers with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from bilevel.errors import InputError
from bilevel.evaluation.bootstrap import Estimate, estimate
from bilevel.evaluation.metrics import Columns, Metric
from bilevel.storage.atomic import write_atomically

FOLDER = "evaluation"
"""The folder of evaluations in a run's folder: a folder for each model, with two files a task."""
_ID = "id"


@dataclass(frozen=True, eq=False)
class Measured:
    """What one model made of one task.

    Attributes:
        task: the task's name.
        kind: its kind's name.
        metrics: what is told of it.
        ids: of its rows.
        columns: what was measured of each row, numbers and texts.
        notices: lines for the user about what was left out or cut.
        fingerprint: of the task; two models can be compared row by row where it is the same.
    """

    task: str
    kind: str
    metrics: tuple[Metric, ...]
    ids: tuple[str, ...]
    columns: Columns
    notices: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def values(self) -> dict[str, float]:
        """The metrics by name."""
        return {metric.name: metric.value(self.columns) for metric in self.metrics}

    def estimates(self) -> dict[str, Estimate]:
        """The metrics by name, with their bootstrap intervals."""
        return {metric.name: estimate(metric, self.columns) for metric in self.metrics}

    def rows(self, chosen: np.ndarray) -> Measured:
        """The same of some of the rows."""
        ids = tuple(np.array(self.ids, dtype=object)[chosen])
        columns = {name: values[chosen] for name, values in self.columns.items()}
        return Measured(self.task, self.kind, self.metrics, ids, columns, self.notices, self.fingerprint)

    def groups(self, by: str) -> dict[str, Measured]:
        """The same for each value of a column of texts, in the order of the values; {} without the column."""
        if by not in self.columns:
            return {}
        found = self.columns[by]
        return {value: self.rows(found == value) for value in sorted(set(found))}


def write_measured(folder: Path, found: Measured) -> None:
    """Writes `TASK.json`, metrics with intervals, and `TASK.parquet`, a line a row.

    Args:
        folder: where; made where it is absent.
        found: what was measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {_ID: list(found.ids), **{name: pa.array(values) for name, values in found.columns.items()}}
    )
    temporary = folder / f".{found.task}.parquet.unfinished"
    pyarrow.parquet.write_table(table, temporary)
    temporary.replace(folder / f"{found.task}.parquet")
    described = {
        "task": found.task,
        "kind": found.kind,
        "rows": len(found.ids),
        "metrics": {name: one._asdict() for name, one in found.estimates().items()},
        "notices": list(found.notices),
        "fingerprint": found.fingerprint,
        "read_from": [asdict(metric) for metric in found.metrics],
    }
    write_atomically(
        folder / f"{found.task}.json", json.dumps(_finite(described), indent=2, ensure_ascii=False) + "\n"
    )


def read_measured(folder: Path, tasks: Sequence[str] | None = None) -> dict[str, Measured]:
    """Reads what one model made of tasks, by their names.

    Args:
        folder: where `write_measured` wrote.
        tasks: which; by default all that are there.

    Raises:
        InputError: a file is missing or broken.
    """
    names = [path.stem for path in sorted(folder.glob("*.json"))] if tasks is None else tasks
    return {name: _read(folder / f"{name}.json") for name in names}


def _read(path: Path) -> Measured:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        table = pyarrow.parquet.read_table(path.with_suffix(".parquet"))
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        return Measured(
            raw["task"],
            raw["kind"],
            tuple(Metric(**metric) for metric in raw["read_from"]),
            tuple(columns.pop(_ID)),
            columns,
            tuple(raw["notices"]),
            raw["fingerprint"],
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: no results of a task ({said}); evaluate again") from error


def _finite(value: Any) -> Any:
    """Numbers that are not finite as null, since JSON has none."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
