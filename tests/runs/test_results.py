import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from bilevel.data import ArrayRows, EncodedRows, Row
from bilevel.errors import InputError
from bilevel.runs import results
from bilevel.runs.results import write_row_results
from bilevel.runs.run_facts import RunFacts, SetFacts, read_facts, write_facts
from bilevel.storage.piecewise import NotWrittenError


def labelled(count: int) -> EncodedRows:
    labels = {"fault": "off_topic", "kind": "plural", "hard": "", "duplicate": ""}
    clean = {**labels, "fault": ""}
    rows = tuple(
        Row(f"rows.jsonl:{i + 1}", "Ask.", "", f"Answer {i}", labels if i % 2 else clean)
        for i in range(count)
    )
    tokens = np.ones((count, 2), np.int32)
    return EncodedRows(rows, tokens, tokens, tokens > 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = np.array([0.5, 3.0, 0.1, 1.0, 0.4], np.float32)
    losses = {"loss_start": np.arange(5.0), "loss_end": np.array([0.1, np.nan, 0.2, 0.3, 0.4])}
    write_row_results(tmp_path, labelled(5), {"weight": weights, **losses}, np.array([1, 3]))
    return tmp_path


def load(kind: str, path: Path, folder: Path) -> datasets.Dataset:
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(folder / "cache"))


def test_weights_load_in_datasets(folder: Path) -> None:
    table = load("parquet", folder / "weights.parquet", folder)
    assert table.column_names == [
        "id",
        "weight",
        "loss_start",
        "loss_end",
        "duplicate",
        "fault",
        "hard",
        "kind",
        "selected_rank",
    ]
    assert table["selected_rank"][:] == [0, 1, 0, 2, 0]
    assert table["weight"][:2] == [0.5, 3.0]
    assert table["loss_end"][:2] == [0.1, None]
    assert table[1]["fault"] == "off_topic"


def test_selected_rows_load_in_datasets(folder: Path) -> None:
    table = load("json", folder / "selected.jsonl", folder)
    assert table["id"][:] == ["rows.jsonl:2", "rows.jsonl:4"]
    assert table[0]["output"] == "Answer 1"
    assert table["weight"][:] == [3.0, 1.0]


def test_extreme_rows_are_kept_with_their_texts(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "extremes.jsonl").read_text().splitlines()]
    assert [(line["end"], line["id"]) for line in lines] == [
        ("heaviest", "rows.jsonl:2"),
        ("heaviest", "rows.jsonl:4"),
        ("lightest", "rows.jsonl:3"),
        ("lightest", "rows.jsonl:5"),
    ]
    assert (lines[0]["output"], lines[0]["loss_start"], lines[0]["loss_end"]) == ("Answer 1", 1.0, None)
    assert lines[0]["fault"] == "off_topic"


def test_of_many_rows_few_are_extreme_and_of_equal_ones_none(tmp_path: Path) -> None:
    write_row_results(tmp_path, labelled(100), {"weight": np.arange(100.0)}, np.arange(3))
    assert len((tmp_path / "extremes.jsonl").read_text().splitlines()) == 16
    write_row_results(tmp_path, labelled(100), {"weight": np.ones(100)}, np.arange(3))
    assert (tmp_path / "extremes.jsonl").read_text() == ""


def test_rows_that_are_no_text_are_named_alone(tmp_path: Path) -> None:
    pool = ArrayRows({"x": np.eye(3)})
    write_row_results(tmp_path, pool, {"weight": np.array([0.5, 2.0, 0.5])}, np.array([1]))
    assert (tmp_path / "selected.jsonl").read_text() == '{"id": "row:2", "weight": 2.0}\n'
    assert not (tmp_path / "extremes.jsonl").exists()
    other = tmp_path / "other"
    other.mkdir()
    write_row_results(other, pool, {"weight": np.ones(3)}, None)
    assert not (other / "selected.jsonl").exists()
    assert load("parquet", other / "weights.parquet", other).column_names == ["id", "weight"]


def test_facts_come_back(tmp_path: Path) -> None:
    assert read_facts(tmp_path) == RunFacts()
    facts = RunFacts(
        "e", ["bds"], "bds", {"pool": SetFacts("rows.jsonl", 3)}, "owner/name", 12, notices=["said ü"]
    )
    write_facts(tmp_path, facts)
    assert read_facts(tmp_path) == facts


@pytest.mark.parametrize("content", ["{", "[]", '{"sets": {}, "colour": 1}', '{"sets": {"pool": 3}}'])
def test_broken_facts_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run.json: no facts"):
        read_facts(tmp_path)


def test_a_file_that_fails_costs_that_file(tmp_path: Path, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no such\ncolumn")

    monkeypatch.setattr(results, "write_weights", fails)
    with pytest.raises(NotWrittenError) as caught:
        write_row_results(tmp_path, labelled(40), {"weight": np.arange(40.0)}, np.arange(3))
    assert caught.value.lines == [f"{tmp_path / 'weights.parquet'} (ValueError: no such column)"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["extremes.jsonl", "selected.jsonl"]


def test_a_full_disk_ends_the_writing_at_once(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        write_row_results(tmp_path, labelled(40), {"weight": np.arange(40.0)}, np.arange(3))
    assert not list(tmp_path.iterdir())
