import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.errors import InputError
from bilevel.report.sections import Chart, Section, Table, read_sections, write_section


def test_a_section_comes_back_as_plain_numbers(tmp_path: Path) -> None:
    chart = Chart("Preference", {"clean": [(0, np.float32(0.5)), (1, jnp.float32(0.25))], "off": [(0, None)]})
    table = Table("Stages", ("stage", "rows"), [("one", np.int64(3)), ("two", None)])
    write_section(tmp_path, "dwm", Section("What it prefers", "A text.", [chart], [table]))
    ((method, found),) = read_sections(tmp_path)
    assert (method, found.title, found.text) == ("dwm", "What it prefers", "A text.")
    assert found.charts[0].series == {"clean": [[0, 0.5], [1, 0.25]], "off": [[0, None]]}
    assert found.tables[0].lines == [["one", 3], ["two", None]]


def test_the_same_title_replaces_and_others_add(tmp_path: Path) -> None:
    for method, title, text in (
        ("dwm", "A/B", "1"),
        ("dwm", "A/B", "2"),
        ("dwm", "C", "3"),
        ("bmo", "C", "4"),
    ):
        write_section(tmp_path, method, Section(title, text))
    assert [section.text for _, section in read_sections(tmp_path)] == ["4", "2", "3"]


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_section(tmp_path, "m", Section("t", charts=[Chart("c", {"s": [(0, math.nan)]})]))
    with pytest.raises(TypeError, match="ndarray"):
        write_section(tmp_path, "m", Section("t", charts=[Chart("c", {"s": [(0, np.ones(2))]})]))
    with pytest.raises(ValueError, match="2 cells for 1 columns"):
        Table("t", ("a",), [("x", 1)])
    assert read_sections(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"method": "m"}',
        '{"method": "m", "charts": [], "tables": []}',
        '{"method": "m", "title": "t", "charts": [{"title": "c", "series": {}, "kind": "pie"}], "tables": []}',
    ],
)
def test_broken_sections_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "sections").mkdir()
    (tmp_path / "sections" / "m-t.json").write_text(content)
    with pytest.raises(InputError, match=r"m-t.json: no section"):
        read_sections(tmp_path)
