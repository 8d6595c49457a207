"""Moves that watch what weights prefer from stage to stage, and the section of the report that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from bilevel.data import EncodedRows, source_of, text_rows
from bilevel.data.similarity import token_signals
from bilevel.errors import InputError
from bilevel.report.sections import Chart, Section, Table
from bilevel.schedule.context import Context
from bilevel.schedule.moves import Move
from bilevel.schedule.score import Asked, Columns, Measure
from bilevel.schedule.state import RunState
from bilevel.weighting.preferences import preferences

SECTION = "What the weights prefer"
TOKEN_SIGNALS = ("length", "duplication", "centroid_distance", "validation_similarity")

_PREFIX = "preferences "
_SOURCE = "source: "
_MOST_SOURCES = 8


def token_measure(validation: str = "validation") -> Measure:
    """What the tokens of rows say of them: the columns `TOKEN_SIGNALS`.

    Args:
        validation: the data set that `validation_similarity` is to.
    """

    def run(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Columns:
        trusted = asked.data[validation]
        if not (isinstance(asked.dataset, EncodedRows) and isinstance(trusted, EncodedRows)):
            raise InputError("tokens are measured of text rows alone: watch the preferences of no others")
        found = token_signals(asked.dataset, trusted)
        return {name: getattr(found, name)[ids] for name in TOKEN_SIGNALS}

    return Measure("tokens", run, TOKEN_SIGNALS, whole=True)


@dataclass(frozen=True)
class MeasurePreferences(Move):
    """Measures what a signal of weights prefers: one stage's line of the run's section, and of its metrics.

    Weights whose effective sample size has fallen below the alarm have collapsed: that is told at once, and shown.

    Attributes:
        stage: whose line this is, from 1.
        weight: the signal of weights.
        loss: the signal of row losses at the stage's end.
        loss_before: the same at the end of the stage before.
        over: which data set.
        alarm: effective sample size, as a share of the rows, below which weights count as collapsed.
    """

    stage: int
    weight: str
    loss: str
    loss_before: str
    over: str = "pool"
    alarm: float = 0.1

    @property
    def reads(self) -> tuple[str, ...]:
        names = (self.weight, self.loss, self.loss_before, *TOKEN_SIGNALS)
        return (f"data:{self.over}", *(f"signal:{name}" for name in names))

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"result:{_PREFIX}{self.stage}",)

    def run(self, state: RunState, context: Context) -> RunState:
        columns = {name: state.column(name, self.over) for name in TOKEN_SIGNALS}
        loss = state.column(self.loss, self.over)
        columns = {"loss": loss, "loss_drop": state.column(self.loss_before, self.over) - loss, **columns}
        rows = text_rows(state.data[self.over])
        sources = [source_of(row) for row in rows]
        found = preferences(state.column(self.weight, self.over), columns, sources, self.alarm)
        line = {name: value for name, value in found.correlations.items() if value is not None}
        line |= {f"{_SOURCE}{name}": value for name, value in found.sources.items()}
        line |= {"entropy": found.entropy, "effective_share": found.effective_share}
        line["collapsed"] = float(found.collapsed)
        state = state.with_result(f"{_PREFIX}{self.stage}", line)
        context.log(state.lower_steps, {f"prefers/{name}": value for name, value in line.items()})
        if found.collapsed:
            context.warn(
                f"stage {self.stage}: the weights have collapsed onto few rows (effective sample size "
                f"{found.effective_share:.1%} of {len(rows)} rows): raise temperature or floor, or lower the network's "
                "learning rate"
            )
        context.show(preferences_section(state.results, len(rows)))
        return state


def preferences_section(results: Mapping[str, Mapping[str, float]], rows: int) -> Section:
    """The section of a report that shows all stages measured so far.

    Args:
        results: of a run's state; what `MeasurePreferences` did not write is passed over.
        rows: of the pool.
    """
    stages = sorted(
        (int(name.removeprefix(_PREFIX)), line) for name, line in results.items() if name.startswith(_PREFIX)
    )
    signals = ("loss", "loss_drop", *TOKEN_SIGNALS)
    sources = list(dict.fromkeys(name for _, line in stages for name in line if name.startswith(_SOURCE)))
    collapsed = [str(number) for number, line in stages if line["collapsed"]]
    text = (
        "Rank correlation of a row's weight with what is known of the row, at the end of each stage. "
        f"Unrelated columns differ from zero by about {(max(rows, 2) - 1) ** -0.5:.2f}."
    )
    if collapsed:
        text += f" Warning: the weights had collapsed onto few rows in stage {', '.join(collapsed)}."
    charts = [
        _chart("Rank correlation with weight", stages, signals, "Above zero: heavier rows have more of it."),
        _chart(
            "How evenly weight is spread",
            stages,
            ("entropy", "effective_share"),
            "1: all rows weigh the same. Entropy over its largest value; effective sample size over the rows.",
        ),
    ]
    headings = [f"stage {number}" for number, _ in stages]
    lines = [_line(stages, name) for name in (*signals, "entropy", "effective_share")]
    lines.append(["collapsed", *("yes" if line["collapsed"] else "no" for _, line in stages)])
    tables = [Table("By stage", ["signal", *headings], lines)]
    if len(sources) > 1:
        charts.append(
            _chart(
                "Mean weight of a source",
                stages,
                _ends(sources, stages),
                "1: as much as in uniform training.",
            )
        )
        tables.append(
            Table("Mean weight of a source", ["source", *headings], [_line(stages, name) for name in sources])
        )
    return Section(SECTION, text, charts, tables)


def _ends(sources: list[str], stages: list[tuple[int, Mapping[str, float]]]) -> list[str]:
    """All sources if a picture holds them, else the heaviest and the lightest of the last stage."""
    if len(sources) <= _MOST_SOURCES:
        return sources
    last = stages[-1][1]
    ordered = sorted(sources, key=lambda name: -last.get(name, 0.0))
    return [*ordered[: _MOST_SOURCES // 2], *ordered[-(_MOST_SOURCES // 2) :]]


def _line(stages: list[tuple[int, Mapping[str, float]]], name: str) -> list[str | float | None]:
    return [_title(name), *(line.get(name) for _, line in stages)]


def _chart(
    title: str,
    stages: list[tuple[int, Mapping[str, float]]],
    names: tuple[str, ...] | list[str],
    caption: str,
) -> Chart:
    series = {_title(name): [(number, line.get(name)) for number, line in stages] for name in names}
    known = {name: points for name, points in series.items() if any(y is not None for _, y in points)}
    return Chart(title, known, x="stage", caption=caption)


def _title(name: str) -> str:
    return name.removeprefix(_SOURCE).replace("_", " ")
