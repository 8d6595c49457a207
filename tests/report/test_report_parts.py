import numpy as np
import pytest

from bilevel.report.label_table import label_groups, label_table
from bilevel.report.lines import Line, line_picture
from bilevel.report.measurements import measurements, points
from bilevel.report.row_groups import group_rows
from bilevel.report.row_text import row_texts
from bilevel.report.svg import series_style


def test_rows_belong_to_their_fault_first() -> None:
    labels = {
        "fault": ["", "off_topic", "", "off_topic", "", None, "cut"],
        "hard": ["", "yes", "yes", "", "", None, ""],
        "duplicate": ["", "", "yes", "", "r:1", None, ""],
    }
    groups = [(group.name, group.kind, group.positions.tolist()) for group in group_rows(labels, 7)]
    assert groups == [
        ("clean", "plain", [0, 5]),
        ("off topic", "fault", [1, 3]),
        ("cut", "fault", [6]),
        ("hard", "special", [2]),
        ("duplicate", "special", [4]),
    ]


def test_many_kinds_of_faults_are_gathered() -> None:
    groups = group_rows({"fault": [f"fault {i}" for i in range(20)] + [""]}, 21)
    assert (groups[0].name, groups[-1].name) == ("clean", "other faults")
    assert [len(group.positions) for group in groups] == [1] * 7 + [14]
    assert sorted(np.concatenate([group.positions for group in groups]).tolist()) == list(range(21))


def test_lines_average_neighbours_and_leave_out_what_has_no_point() -> None:
    steps = np.arange(1000.0)
    lines = [Line("BDS", steps, steps % 2 + 1), Line("uniform", np.zeros(1), np.array([np.nan]), style=1)]
    picture = line_picture(lines, "loss", "Loss", "A loss.")
    assert picture is not None
    assert [name for name, _ in picture.legend] == ["BDS"]
    assert "means of up to 9 measurements" in picture.caption
    assert line_picture(lines[1:], "loss", "Loss", "A loss.") is None


def test_averages_skip_gaps() -> None:
    steps = np.arange(240.0)
    values = np.where(steps % 2 == 0, 4.0, np.nan)
    values[100:140] = np.nan
    picture = line_picture([Line("a", steps, values)], "gaps", "Gaps", "")
    assert picture is not None
    assert "nan" not in picture.svg


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, 5.0], [1e-9, 1e9], [3.0, 3.0], [7.0]])
def test_any_range_of_values_has_an_axis(values: list[float]) -> None:
    picture = line_picture([Line("a", np.arange(len(values)), np.array(values))], "r", "R", "")
    assert picture is not None
    assert ("logarithmic" in picture.caption) == (values[0] == 1e-9)


def test_bands_are_drawn_around_their_line() -> None:
    x = np.arange(3.0)
    plain = Line("a", x, x)
    banded = Line("a", x, x, x - 1, x + 1)
    without, with_band = (line_picture([line], "b", "B", "") for line in (plain, banded))
    assert without is not None
    assert with_band is not None
    assert with_band.svg.count("FillBetween") > without.svg.count("FillBetween") == 0


def test_no_two_of_many_series_look_alike() -> None:
    styles = [series_style(number) for number in range(36)]
    assert len(set(styles)) == 36
    assert len({dashes for _, dashes in styles[:6]}) == 6


def test_unknown_measurements_are_shown_after_the_known_ones() -> None:
    metrics = {
        "bds": [
            {"method": "bds", "step": 1, "inner_steps": 4, "residual": 0.5, "note": "text", "a/b": 1},
            {"method": "bds", "step": 2, "lower_loss": None, "residual": None, "skipped_steps": 1},
        ],
        "uniform": [{"method": "uniform", "step": 1, "upper_loss": 2.0}],
    }
    found = [(one.key, one.title, one.place) for one in measurements(metrics)]
    assert found == [
        ("upper_loss", "Upper level: validation loss", "training"),
        ("residual", "Linear system: relative residual", "hypergradient"),
        ("inner_steps", "Inner steps", "other"),
    ]
    assert points(metrics["bds"], "residual") == [(1, 0.5)]


def test_rows_of_every_form_have_texts() -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns], "system": "Be kind."}
    assert row_texts(chat) == [
        ("system", "Be kind."),
        ("question", "Hi"),
        ("response", "Hello"),
        ("instruction", "Bye"),
        ("output", "Ciao"),
    ]
    pair = {"id": "r:1", "prompt": "Add.", "completion": "2", "weight": 1.5}
    assert row_texts(pair) == [("instruction", "Add."), ("output", "2")]
    assert row_texts({"instruction": "Add.", "input": "", "output": None}) == [("instruction", "Add.")]
    cut = row_texts({"instruction": "Add.", "output": "x" * 20}, longest=10)
    assert cut[1] == ("output", "xxxxxxxxxx \u2066… (20 characters)\u2069")


def test_long_conversations_are_shown_from_their_end() -> None:
    turns = [("user", "q"), ("assistant", "a")] * 8
    found = row_texts({"messages": [{"role": role, "content": content} for role, content in turns]})
    assert found[0] == ("", "… 3 earlier turns")
    assert len(found) == 11


def test_rows_of_a_broken_form_are_shown_as_they_are() -> None:
    assert row_texts({"messages": [], "id": "r:1"}) == [("messages", "[]")]
    assert row_texts({"messages": "text", "reason": "no turns"}) == [("messages", "text")]
    assert row_texts({"output": "alone"}) == [("output", "alone")]
    assert row_texts({"id": "r:1", "reason": "nothing"}) == []


def test_the_table_by_label_shows_signals_but_not_those_of_every_stage() -> None:
    columns = {
        "id": np.array(["a", "b"]),
        "weight": np.array([0.5, 1.5]),
        "length": np.array([3, 5]),
        "loss_2": np.array([1.0, 2.0]),
        "weight_2": np.array([1.0, 1.0]),
    }
    headings, lines = label_table(columns, label_groups(columns))
    assert headings == ["rows", "share of rows", "share of weight", "median weight", "length"]
    assert lines[0][1:] == ["100.0%", "100.0%", "1", "4.000"]
