"""Where rows come from, on its way through files."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from bilevel.data import Lineage, Row, child_id, read_rows, write_rows
from bilevel.data.rows import read_lineage, row_line, row_of_line
from bilevel.errors import InputError

LINEAGE = Lineage("pool.jsonl:3", 2, "refiner", {"loss": 2.5, "neighbours": 0.125})
CHILD = Row(child_id("pool.jsonl:3", 2, 1), "Add.", "1 2", "3", lineage=LINEAGE)
TALK = Row("b:1", "And 2?", "", "4", history=(("Twice 1?", "2"),), form="messages", lineage=LINEAGE)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_lineage_comes_back_from_a_file(tmp_path: Path, name: str) -> None:
    read = Row("pool.jsonl:1", "Subtract.", "2 1", "1")
    write_rows(tmp_path / name, [read, CHILD])
    first, second = read_rows(tmp_path / name).rows
    assert first.lineage is None
    assert second.lineage == LINEAGE
    assert dict(second.extra) == {"id": CHILD.id}
    write_rows(tmp_path / "again.jsonl", [first, second])
    assert [row.lineage for row in read_rows(tmp_path / "again.jsonl").rows] == [None, LINEAGE]


def test_lineage_goes_with_every_form(tmp_path: Path) -> None:
    write_rows(tmp_path / "talks.jsonl", [TALK])
    (row,) = read_rows(tmp_path / "talks.jsonl").rows
    assert (row.form, row.history, row.lineage) == ("messages", TALK.history, LINEAGE)


def test_lineage_comes_back_from_a_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    other = {"parent": "b:1", "round": 0, "origin": "merge", "scores": {"loss": 1.0}}
    record = {"instruction": "Add.", "output": "3"}
    lines = [
        {**record, "lineage": LINEAGE.record()},
        {**record, "lineage": other},
        {**record, "lineage": None},
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(lines), tmp_path / "rows.parquet")
    found = [row.lineage for row in read_rows(tmp_path / "rows.parquet").rows]
    # Null stands for a score that one row has and another has not.
    assert found == [LINEAGE, Lineage("b:1", 0, "merge", {"loss": 1.0}), None]


@pytest.mark.parametrize(
    "value",
    [
        "web",
        None,
        {"parent": "a:1"},
        {**LINEAGE.record(), "more": 1},
        {**LINEAGE.record(), "round": -1},
        {**LINEAGE.record(), "round": True},
        {**LINEAGE.record(), "parent": 3},
        {**LINEAGE.record(), "scores": [1.0]},
        {**LINEAGE.record(), "scores": {"loss": "high"}},
    ],
)
def test_other_columns_of_that_name_are_kept_as_they_are(tmp_path: Path, value: object) -> None:
    record = {"instruction": "Add.", "output": "3", "lineage": value}
    (tmp_path / "rows.jsonl").write_text(json.dumps(record))
    (row,) = read_rows(tmp_path / "rows.jsonl").rows
    assert (row.lineage, row.extra["lineage"]) == (None, value)
    assert read_lineage(value) is None
    write_rows(tmp_path / "again.jsonl", [row])
    assert json.loads((tmp_path / "again.jsonl").read_text())["lineage"] == value


def test_a_rows_lineage_wins_over_its_files_column(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [replace(CHILD, extra={"lineage": "web"})])
    assert read_rows(tmp_path / "rows.jsonl").rows[0].lineage == LINEAGE
    with pytest.raises(ValueError, match="column 'lineage' belongs to the row itself"):
        write_rows(tmp_path / "rows.jsonl", [CHILD], lineage=[1])
    assert issubclass(InputError, ValueError)


def test_ids_of_children_are_stable_and_no_two_are_the_same() -> None:
    assert child_id("a:1", 2, 3) == child_id("a:1", 2, 3)
    parents = ["a:1", "a:11", child_id("a:1", 1, 1), child_id("a:1", 11, 1)]
    ids = [child_id(parent, round, n) for parent in parents for round in (0, 1, 11) for n in (0, 1, 11)]
    assert len({*ids, *parents}) == len(ids) + len({"a:1", "a:11"})


def test_a_row_comes_back_whole_from_its_line() -> None:
    for row in (
        CHILD,
        TALK,
        replace(CHILD, extra={"tags": ["a", None], "half": "\ud800"}, system="Be brief."),
    ):
        assert row_of_line(row_line(row)) == row
        assert "\n" not in row_line(row)
    numbers = Lineage("a:1", 1, "x", {"loss": np.float64(0.5)})
    assert row_of_line(row_line(replace(CHILD, lineage=numbers))).lineage == Lineage(
        "a:1", 1, "x", {"loss": 0.5}
    )
    # What JSON does not know becomes text once, and then stays the same.
    line = row_line(replace(CHILD, extra={"day": date(2024, 1, 2), "pair": (1, 2)}))
    assert row_line(row_of_line(line)) == line
