"""Everything that a run left behind, or left so far, read for its report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.errors import InputError
from bilevel.report.sections import Section, read_sections
from bilevel.runs import config_file, metrics, weights
from bilevel.runs.results import EXTREMES
from bilevel.runs.run_facts import RunFacts, read_facts
from bilevel.runs.run_record import read_finished
from bilevel.runs.timing import Part, read_timings
from bilevel.runs.warnings_file import read_warnings

ENVIRONMENT, REJECTED, SUMMARY = "environment.json", "rejected.jsonl", "summary.json"


@dataclass(frozen=True)
class RunFiles:
    """A run folder's content; what the run did not write, or not yet, is empty.

    Attributes:
        folder: where it was read.
        summary: `summary.json`; a run that has not finished has none.
        done: results of the methods that are done, by method.
        facts: `run.json`.
        config: `config.yaml`, as plain values.
        environment: `environment.json`.
        metrics: lines of `metrics.jsonl` by method.
        weights: columns of `weights.parquet`.
        extremes: lines of `extremes.jsonl`.
        rejected: lines of `rejected.jsonl`.
        timings: `timings.json`.
        warnings: lines of `warnings.txt`.
        sections: what methods added, each with the method's name.
    """

    folder: Path
    summary: Mapping[str, Any]
    done: Mapping[str, Mapping[str, float | None]]
    facts: RunFacts
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Mapping[str, list[dict[str, Any]]]
    weights: Mapping[str, np.ndarray]
    extremes: Sequence[Mapping[str, Any]]
    rejected: Sequence[Mapping[str, Any]]
    timings: Sequence[Sequence[Part]]
    warnings: Sequence[str]
    sections: Sequence[tuple[str, Section]]

    @property
    def finished(self) -> bool:
        """Whether the run reached its end."""
        return bool(self.summary)

    @property
    def results(self) -> Mapping[str, Mapping[str, float | None]]:
        """Results by method, in the order in which they ran; of a run that goes on, of those that are done."""
        return self.summary.get("methods") or self.done

    @property
    def methods(self) -> list[str]:
        """Methods in the order in which they run."""
        return list(dict.fromkeys([*self.facts.methods, *self.results, *self.metrics]))

    @property
    def main(self) -> str:
        """The method that the run is about."""
        return self.facts.main or next(iter(self.methods), "")

    @property
    def title(self) -> str:
        """What the run is called."""
        experiment = self.summary.get("experiment") or self.facts.experiment
        preset, seed = (self.summary.get(key, self.config.get(key)) for key in ("preset", "seed"))
        parts = [experiment, preset, None if seed is None else f"seed {seed}"]
        return " · ".join(str(part) for part in parts if part) or self.folder.resolve().name


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder.

    Args:
        folder: the folder of a run that finished, still goes on, or was killed.

    Returns:
        What stands in it.

    Raises:
        InputError: this is no run folder, or a file in it is broken.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the folder of a run")
    if not any((folder / name).exists() for name in (SUMMARY, config_file.FILE, metrics.FILE)):
        raise InputError(
            f"{folder}: no run folder ({SUMMARY}, {config_file.FILE} and {metrics.FILE} are missing); "
            "name the folder of a run"
        )
    facts = read_facts(folder)
    done = {method: read_finished(folder, method) for method in facts.methods}
    return RunFiles(
        folder=folder,
        summary=_read_object(folder / SUMMARY),
        done={method: found["results"] for method, found in done.items() if found is not None},
        facts=facts,
        config=config_file.read_raw_config(folder) if (folder / config_file.FILE).exists() else {},
        environment=_read_object(folder / ENVIRONMENT),
        metrics=metrics.read_metrics(folder),
        weights=weights.read_weights(folder / weights.FILE) if (folder / weights.FILE).exists() else {},
        extremes=_read_lines(folder / EXTREMES),
        rejected=_read_lines(folder / REJECTED),
        timings=read_timings(folder),
        warnings=read_warnings(folder),
        sections=read_sections(folder),
    )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: broken JSON ({error}); restore or remove the file") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    # Only "\n" ends a line: text in a row may hold other separators.
    *whole, last = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate([*whole, last], start=1):
        if not line.strip():
            continue
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if line is last:  # a killed run left it unfinished
                break
            raise InputError(f"{path}:{number}: broken JSON ({error}); restore or remove the file") from error
    return found
