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
