"""The moves that watch preferences, on the toy."""

from __future__ import annotations

import numpy as np

from bilevel.report.sections import read_sections, write_section
from bilevel.schedule import Round, Score, run_schedule
from bilevel.schedule.preferences import SECTION, TOKEN_SIGNALS, MeasurePreferences, token_measure
from tests.schedule.toy import context, encoded, start

ROWS = 40


def measured(weights: dict[int, np.ndarray], tmp_path, alarm: float = 0.1):
    """The state, metrics, warnings and section after stages with these weights; losses fall by a row's position."""
    lines, warnings = [], []
    settings = context(
        log=lambda step, numbers: lines.append(numbers),
        show=lambda section: write_section(tmp_path, "dwm", section),
        warn=warnings.append,
    )
    state = start(pool=encoded(ROWS, 0, faulty=10))
    position = np.arange(ROWS, dtype=np.float32)
    state = state.with_signal("loss_0", position + 50)
    moves = [Score("", token_measure())]
    for stage, values in weights.items():
        state = state.with_signal(f"weight_{stage}", values).with_signal(
            f"loss_{stage}", 50 - stage * position
        )
        moves.append(
            MeasurePreferences(stage, f"weight_{stage}", f"loss_{stage}", f"loss_{stage - 1}", alarm=alarm)
        )
    state = run_schedule((Round(tuple(moves)),), state, settings)
    return state, lines, warnings, read_sections(tmp_path)


def test_each_stage_has_its_line_and_the_section_shows_them_all(tmp_path):
    position = np.arange(ROWS, dtype=np.float32)
    state, lines, warnings, sections = measured({1: 1 + position, 2: 80 - position}, tmp_path)
    first, second = (state.results[f"preferences {stage}"] for stage in (1, 2))
    # Losses fall with the position, and the drop grows with it in stage 2 as well as in stage 1.
    assert (first["loss"], first["loss_drop"]) == (-1.0, 1.0)
    assert (second["loss"], second["loss_drop"]) == (1.0, -1.0)
    assert set(TOKEN_SIGNALS) <= set(state.signals)
    assert lines[1]["prefers/loss"] == 1.0
    assert warnings == []
    ((method, section),) = sections
    assert (method, section.title) == ("dwm", SECTION)
    assert "Warning" not in section.text
    assert section.tables[0].columns == ["signal", "stage 1", "stage 2"]
    assert ["loss", -1.0, 1.0] in section.tables[0].lines
    assert section.charts[0].series["loss"] == [[1, -1.0], [2, 1.0]]
    # All toy rows are equally long, so length says nothing.
    assert "length" not in section.charts[0].series


def test_collapsed_weights_are_told_at_once_and_marked(tmp_path):
    weights = np.zeros(ROWS, np.float32)
    weights[:2] = 20
    state, _, warnings, sections = measured({1: np.ones(ROWS, np.float32), 2: weights}, tmp_path)
    assert len(warnings) == 1
    assert "stage 2: the weights have collapsed" in warnings[0]
    assert state.results["preferences 1"]["collapsed"] == 0
    ((_, section),) = sections
    assert section.text.endswith("Warning: the weights had collapsed onto few rows in stage 2.")
    assert section.tables[0].lines[-1] == ["collapsed", "no", "yes"]


def test_the_alarm_can_be_set(tmp_path):
    weights = np.zeros(ROWS, np.float32)
    weights[:2] = 20
    assert measured({1: weights}, tmp_path, alarm=0.04)[2] == []


def test_sources_are_drawn_where_there_are_several(tmp_path):
    weights = 1 + np.arange(ROWS, dtype=np.float32)
    state, _, _, sections = measured({1: weights}, tmp_path)
    assert state.results["preferences 1"]["source: toy"] == 1.0
    assert len(sections[0][1].charts) == 2
