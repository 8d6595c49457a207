"""Kept rows in the form they came in."""

from __future__ import annotations

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from bilevel.data.kept import write_kept, write_kept_text
from bilevel.data.rows import Row

RECORDS = [
    {"instruction": f"Ask {n}.", "output": f"Say {n}, twice.", "hard": n == 2, "nested": {"n": [n, None]}}
    for n in range(1, 4)
]


def keep(path, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return write_kept(str(path), folder, {f"{path.name}:{n}": n / 4 for n in (3, 1)})


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines(packed, tmp_path):
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    content = "\n\n".join(json.dumps(record) for record in RECORDS).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    folder = tmp_path / "out"
    folder.mkdir()
    written = write_kept(str(path), folder, {f"{path.name}:{n}": n / 4 for n in (5, 1)})
    assert written.name == "kept.jsonl"
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert lines == [RECORDS[0] | {"score": 0.25}, RECORDS[2] | {"score": 1.25}]


def test_a_json_array_stays_an_array(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n" + json.dumps(RECORDS))
    written = keep(path, tmp_path)
    assert written.name == "kept.json"
    assert json.loads(written.read_text()) == [RECORDS[0] | {"score": 0.25}, RECORDS[2] | {"score": 0.75}]


def test_json_lines_in_a_json_file_stay_lines(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(record) for record in RECORDS))
    assert keep(path, tmp_path).name == "kept.jsonl"


def test_tables(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("instruction\toutput\tscore\nA\tone\t9\nB\ttwo\t8\nC\t'three'\t7\n")
    written = keep(path, tmp_path)
    with written.open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    assert lines == [
        {"instruction": "A", "output": "one", "score": "9", "score_2": "0.25"},
        {"instruction": "C", "output": "'three'", "score": "7", "score_2": "0.75"},
    ]


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(RECORDS), path)
    written = keep(path, tmp_path)
    assert pyarrow.parquet.read_table(written).to_pylist() == [
        RECORDS[0] | {"score": 0.25},
        RECORDS[2] | {"score": 0.75},
    ]


def test_documents(tmp_path):
    rows = [Row("t:1", "", "", "One.\nTwo."), Row("t:4", "", "", "Three.")]
    assert write_kept_text(rows, tmp_path, end_of_text=False).read_text() == "One.\nTwo.\n\nThree.\n"
    assert (
        write_kept_text(rows, tmp_path, end_of_text=True).read_text() == "One.\nTwo.\n<|endoftext|>\nThree.\n"
    )


def test_a_parquet_tables_types_and_values_come_back(tmp_path):
    table = pa.table(
        {
            "instruction": ["a", "b", "c"],
            "small": pa.array([1, None, 3], pa.int8()),
            "half": pa.array([0.5, float("nan"), 2.0], pa.float32()),
            "when": pa.array([1, 2, 3], pa.timestamp("ms", "UTC")),
            "raw": pa.array([b"\x00", b"\xff", None]),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        }
    )
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    written = pyarrow.parquet.read_table(keep(path, tmp_path))
    assert written.drop_columns("score").equals(pyarrow.parquet.read_table(path).take([0, 2]))
    assert written["score"].to_pylist() == [0.25, 0.75]


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"output": "a", "x": [NaN, 1.5]}\n{"output": "b"}\n{"output": "c", "x": -Infinity}\n')
    lines = keep(path, tmp_path).read_text().splitlines()
    assert lines == [
        '{"output": "a", "x": [null, 1.5], "score": 0.25}',
        '{"output": "c", "x": null, "score": 0.75}',
    ]
