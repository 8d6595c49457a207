"""Several runs side by side: which belong together, in what they differ, and their numbers over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bilevel.errors import InputError
from bilevel.report.intervals import Interval, interval
from bilevel.report.lines import Line
from bilevel.report.measurements import points
from bilevel.report.page import UNSET, flat
from bilevel.report.run_files import RunFiles, read_run
from bilevel.report.table import Column, method_title, result_columns

NOT_COMPARED = ("seed", "run_dir", "run.")
"""Settings, or beginnings of them, in which runs of one group may differ: they change no number, or are what is
averaged over."""
NAMED_DIFFERENCES = 2
LONGEST_NAME = 40


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seeds alone.

    Attributes:
        letter: its short name.
        runs: in the order in which they were named.
        settings: their common configuration, flat, without what may differ.
    """

    letter: str
    runs: tuple[RunFiles, ...]
    settings: Mapping[str, str]

    @property
    def methods(self) -> list[str]:
        """Methods of any of its runs, in the order in which they ran."""
        return list(dict.fromkeys(method for run in self.runs for method in run.results))

    def result(self, method: str, column: Column) -> Interval | None:
        """A number of a method over the seeds; None where no run has it."""
        return interval([run.results.get(method, {}).get(column.key) for run in self.runs])

    def curve(self, method: str, key: str, name: str, style: int) -> Line | None:
        """A measurement of a method over steps: the mean of the seeds, and a band where there are several.

        Args:
            method: whose measurement.
            key: its name in `metrics.jsonl`.
            name: what the legend calls it.
            style: number of the line's colour and dashes.

        Returns:
            The line at the steps that all its runs measured; None where there are none.
        """
        curves = [dict(points(run.metrics.get(method, ()), key)) for run in self.runs]
        curves = [curve for curve in curves if curve]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if not steps:
            return None
        found = [interval([curve[step] for curve in curves]) for step in steps]
        mean, low, high = np.array([[one.mean, one.low, one.high] for one in found if one is not None]).T
        x = np.array(steps, dtype=np.float64)
        return Line(name, x, mean, style=style) if len(curves) == 1 else Line(name, x, mean, low, high, style)


class ResultLine(NamedTuple):
    """A line of the table of results: numbers of one method in one group, each a mean and its range as text."""

    group: str
    method: str
    runs: int
    cells: list[tuple[str, str]]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        groups: in the order in which their first runs were named.
        differences: settings that are not the same in all groups; a value, or None, for each group.
    """

    groups: tuple[Group, ...]
    differences: Mapping[str, tuple[str | None, ...]]

    @property
    def columns(self) -> tuple[Column, ...]:
        """What the table of results shows."""
        return result_columns(
            values for group in self.groups for run in group.runs for values in run.results.values()
        )

    @property
    def common(self) -> dict[str, str]:
        """Settings that all groups share."""
        return {key: value for key, value in self.groups[0].settings.items() if key not in self.differences}

    def name(self, group: Group) -> str:
        """A group's letter, with what tells it from the others where that is short."""
        if not 0 < len(self.differences) <= NAMED_DIFFERENCES:
            return group.letter
        position = self.groups.index(group)
        said = ", ".join(
            f"{key.rpartition('.')[2]} {values[position]}" for key, values in self.differences.items()
        )
        return f"{group.letter}: {said}" if len(said) <= LONGEST_NAME else group.letter

    def lines(self) -> list[ResultLine]:
        """Lines of the table of results."""
        return [
            ResultLine(
                self.name(group),
                method_title(method),
                sum(method in run.results for run in group.runs),
                [_texts(group.result(method, column), column) for column in self.columns],
            )
            for group in self.groups
            for method in group.methods
        ]


def compare(folders: Sequence[Path]) -> Comparison:
    """Reads finished runs and puts those together that differ by their seed alone.

    Runs of the same settings and the same seed (of two versions, say, or on two machines) count as different groups:
    their numbers are no independent draws.

    Args:
        folders: run folders.

    Raises:
        InputError: fewer than two folders, one twice, one without a finished run, or a broken file.
    """
    if len(folders) < 2:
        raise InputError("a comparison needs two runs or more: name their folders")
    named: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in named:
            raise InputError(f"{folder} and {named[folder.resolve()]} are the same run; name it once")
        named[folder.resolve()] = folder
    runs = [read_run(folder) for folder in folders]
    for run in runs:
        if not run.finished:
            raise InputError(
                f"{run.folder}: summary.json is missing, the run has not finished; resume it or leave it out"
            )
    members: dict[tuple[object, ...], list[RunFiles]] = {}
    repeated: dict[tuple[object, ...], int] = {}
    for run in runs:
        settings = tuple(_settings(run).items())
        seed = (settings, run.summary.get("seed"))
        repetition = repeated[seed] = repeated.get(seed, -1) + 1
        members.setdefault((settings, repetition), []).append(run)
    groups = tuple(
        Group(_letter(number), tuple(together), _settings(together[0]))
        for number, together in enumerate(members.values())
    )
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    differences = {key: tuple(group.settings.get(key) for group in groups) for key in keys}
    return Comparison(groups, {key: values for key, values in differences.items() if len(set(values)) > 1})


def _settings(run: RunFiles) -> dict[str, str]:
    experiment = {"experiment": str(run.summary.get("experiment", ""))}
    # What is not set says as much as what another version did not know.
    told = {key: value for key, value in flat(run.config) if value != UNSET}
    return experiment | {key: value for key, value in told.items() if not _is_apart(key)}


def _is_apart(key: str) -> bool:
    return any(key.startswith(one) if one.endswith(".") else key == one for one in NOT_COMPARED)


def _letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    first, last = divmod(number, 26)
    return (_letter(first - 1) if first else "") + chr(ord("A") + last)


def _texts(found: Interval | None, column: Column) -> tuple[str, str]:
    return (column.text(None), "") if found is None else found.texts(column)
