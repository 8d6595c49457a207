"""Everything that a run left behind, read for its report."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.runtime import config_file, metrics, weights
from bilevel.runtime.run_folder import read_summary


@dataclass(frozen=True)
class RunFiles:
    """A run folder's content; what the run did not write is empty.

    Args:
        summary: `summary.json`.
        config: `config.yaml`, as plain values.
        environment: `environment.json`.
        metrics: lines of `metrics.jsonl` by method.
        weights: columns of `weights.parquet`.
        rejected: lines of `rejected.jsonl`.
    """

    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Mapping[str, list[dict[str, Any]]]
    weights: Mapping[str, np.ndarray]
    rejected: list[dict[str, Any]]

    @property
    def methods(self) -> Mapping[str, Mapping[str, float | None]]:
        """Results by method."""
        return self.summary["methods"]


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder.

    Args:
        folder: the folder; it holds at least `summary.json`.

    Returns:
        What stands in it.

    Raises:
        InputError: there is no summary, or a file is broken.
    """
    environment = folder / "environment.json"
    rejected = folder / "rejected.jsonl"
    return RunFiles(
        summary=read_summary(folder),
        config=config_file.read_raw_config(folder) if (folder / config_file.FILE).exists() else {},
        environment=json.loads(environment.read_text(encoding="utf-8")) if environment.exists() else {},
        metrics=metrics.read_metrics(folder),
        weights=weights.read_weights(folder / weights.FILE) if (folder / weights.FILE).exists() else {},
        rejected=_read_lines(rejected) if rejected.exists() else [],
    )


def _read_lines(path: Path) -> list[dict[str, Any]]:
    # Only "\n" ends a line: text in a row may hold other separators.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
