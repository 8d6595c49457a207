"""Rows from and to files."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from bilevel.data import Row, read_rows, write_rejected, write_rows
from bilevel.errors import InputError

GOOD = '{"instruction": "Say hello.", "output": "Hello."}'


def written(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_and_arrays_are_told_apart_by_content(tmp_path: Path) -> None:
    records = [json.loads(GOOD), {"instruction": "Add.", "input": "1 2", "output": "3"}]
    lines = written(tmp_path, "\n".join(json.dumps(record) for record in records), "lines.json")
    array = written(tmp_path, json.dumps(records, indent=2), "array.jsonl")
    texts = [("Say hello.", "", "Hello."), ("Add.", "1 2", "3")]
    for path in (lines, array):
        rows, rejected, _ = read_rows(path)
        assert [(row.instruction, row.input, row.output) for row in rows] == texts
        assert [row.id for row in rows] == [f"{path.name}:1", f"{path.name}:2"]
        assert rejected == ()


def test_ids_count_every_line_of_the_file(tmp_path: Path) -> None:
    rows, *_ = read_rows(written(tmp_path, f"\n{GOOD}\r\n\n   \n{GOOD}\n"))
    assert [row.id for row in rows] == ["rows.jsonl:2", "rows.jsonl:5"]


def test_separators_inside_strings_do_not_end_a_line(tmp_path: Path) -> None:
    record = {"instruction": "Copy.", "output": "one\u2028two\x85three"}
    path = written(tmp_path, json.dumps(record, ensure_ascii=False) + "\n" + GOOD)
    rows, *_ = read_rows(path)
    assert [row.output for row in rows] == ["one\u2028two\x85three", "Hello."]


def test_byte_order_mark_null_input_and_umlauts(tmp_path: Path) -> None:
    content = '\ufeff{"instruction": "Grüße", "input": null, "output": "Grüß Gott ☀"}'
    ((row,), *_) = read_rows(written(tmp_path, content))
    assert (row.instruction, row.input, row.output) == ("Grüße", "", "Grüß Gott ☀")


def test_labels_are_text_and_other_columns_are_kept(tmp_path: Path) -> None:
    columns = {
        "fault": "truncated",
        "hard": True,
        "duplicate": None,
        "kind": 3,
        "source": "web",
        "tags": ["a"],
    }
    ((row,), *_) = read_rows(written(tmp_path, json.dumps(json.loads(GOOD) | columns)))
    assert row.labels == {"fault": "truncated", "hard": "yes", "duplicate": "", "kind": "3"}
    # What is no such text is kept as it was, too.
    others = {"hard": True, "duplicate": None, "kind": 3}
    assert row.extra == {"source": "web", "tags": ["a"]} | others
    assert row.label("fault") == "truncated"
    assert Row("a:1", "x", "", "y").label("fault") == ""


@pytest.mark.parametrize("value", ["", "no", "None", "false", False, 0, 0.0, None, "0", " "])
def test_labels_that_say_no_are_empty(tmp_path: Path, value: object) -> None:
    ((row,), *_) = read_rows(written(tmp_path, json.dumps(json.loads(GOOD) | {"fault": value})))
    assert row.labels == {"fault": ""}


def test_rows_that_cannot_be_used_are_rejected_with_a_remedy(tmp_path: Path) -> None:
    records = [
        {"instruction": "a", "output": ""},
        {"instruction": "a", "output": " \n"},
        {"instruction": "a", "output": None},
        {"instruction": " ", "output": "b"},
        {"instruction": "a", "output": "half \ud800"},
        {"instruction": "a", "output": "b"},
    ]
    rows, rejected, _ = read_rows(written(tmp_path, "\n".join(map(json.dumps, records))))
    assert [row.id for row in rows] == ["rows.jsonl:6"]
    assert [(item.id, item.reason) for item in rejected] == [
        ("rows.jsonl:1", "empty response"),
        ("rows.jsonl:2", "empty response"),
        ("rows.jsonl:3", "empty response"),
        ("rows.jsonl:4", "empty instruction"),
        ("rows.jsonl:5", "broken characters (half of a surrogate pair)"),
    ]
    assert all("row" in item.remedy or "again" in item.remedy for item in rejected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "{path}: the file is empty; write at least one row"),
        (b" \n\n", "{path}: the file is empty; write at least one row"),
        (b"\xef\xbb\xbf", "{path}: the file is empty; write at least one row"),
        (b"[]", "{path}: no rows inside; write at least one row"),
        (
            f"{GOOD}\n{GOOD[:-1]}\n".encode(),
            "{path}:2: broken JSON (Expecting ',' delimiter, column 49); write one JSON object a line",
        ),
        (f"[{GOOD},\n{GOOD}\n".encode(), "{path}:3: broken JSON (Expecting ',' delimiter, column 1)"),
        (f"[{GOOD}]\n[{GOOD}]".encode(), "{path}:2: broken JSON (Extra data, column 1)"),
        (b'{\n  "instruction": "a"\n}', "{path}:1: broken JSON"),
        (
            f"{GOOD}\n3\n".encode(),
            "{path}:2: a row must be a JSON object with columns such as 'instruction' and 'output', this is int",
        ),
        (
            b'["a"]',
            "{path}:1: a row must be a JSON object with columns such as 'instruction' and 'output', this is str",
        ),
        (
            b'{"prompt": "a", "output": "b"}',
            "{path}:1: column 'instruction' is missing (there: 'prompt', 'output'); add it, or rename yours to ",
        ),
        (f"[{GOOD}, {{}}]".encode(), "{path}:2: column 'instruction' is missing (there: none)"),
        (b'{"instruction": "a"}', "{path}:1: column 'output' is missing (there: 'instruction')"),
        (
            b'{"instruction": "a", "output": 3}',
            "{path}:1: column 'output' must be text, this is int; write it as a JSON",
        ),
        (
            b'{"instruction": ["a"], "output": "b"}',
            "{path}:1: column 'instruction' must be text, this is list",
        ),
        (
            b'{"instruction": "a", "input": {}, "output": "b"}',
            "{path}:1: column 'input' must be text, this is dict",
        ),
        (GOOD.encode() + b"\n\xff\xfe", "{path}:2: not UTF-8 text; save the file with UTF-8 encoding"),
        (b"[" * 200_000, "{path}:1: "),
        (b'{"instruction": "a", "output": "b", "n": ' + b"1" * 5000 + b"}", "{path}:1: unusable JSON"),
    ],
)
def test_unusable_files_are_named_with_row_and_remedy(tmp_path: Path, content: bytes, expected: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_rows(path)
    assert str(error.value).startswith(expected.format(path=path))
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.jsonl: no such file; check the path"):
        read_rows(tmp_path / "nowhere.jsonl")


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    rows = (
        Row(
            "a.jsonl:7",
            "Copy\u2028 ü",
            "",
            "ü\n",
            {"fault": "off_topic", "hard": ""},
            {"source": "web", "id": 12},
        ),
        Row("a.jsonl:9", "b", "c", "d", {}, {"tags": ["x", None]}),
    )
    path = tmp_path / "selected.jsonl"
    write_rows(path, rows, weight=[0.5, 2.0])
    first, second = read_rows(path).rows
    assert (first.instruction, first.input, first.output) == ("Copy\u2028 ü", "", "ü\n")
    assert first.labels == rows[0].labels
    assert first.extra == {"id": "a.jsonl:7", "original_id": 12, "source": "web", "weight": 0.5}
    assert second.extra == {"id": "a.jsonl:9", "tags": ["x", None], "weight": 2.0}
    assert "ü" in path.read_text(encoding="utf-8")

    write_rows(path, [first])
    ((again,), *_) = read_rows(path)
    assert again.extra == {
        "id": "selected.jsonl:1",
        "original_id": 12,
        "original_id_2": "a.jsonl:7",
        "source": "web",
        "weight": 0.5,
    }


def test_extra_columns_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="column 'weight' has 1 values for 2 rows"):
        write_rows(tmp_path / "x", [Row("a:1", "b", "", "c")] * 2, weight=[1.0])
    with pytest.raises(ValueError, match="column 'output' belongs to the row itself"):
        write_rows(tmp_path / "x", [Row("a:1", "b", "", "c")], output=["d"])


def test_rejected_rows_are_written_with_reasons_even_with_broken_characters(tmp_path: Path) -> None:
    records = [{"instruction": "a", "output": ""}, {"instruction": "a", "output": "\ud800", "n": 1}]
    _, rejected, _ = read_rows(written(tmp_path, "\n".join(map(json.dumps, records))))
    path = tmp_path / "rejected.jsonl"
    write_rejected(path, rejected)
    _, again, _ = read_rows(path)
    assert [item.row.extra["reason"] for item in again] == [item.reason for item in rejected]
    assert [item.row.extra["id"] for item in again] == ["rows.jsonl:1", "rows.jsonl:2"]
    assert again[1].row.output == "\ud800"


def test_real_alpaca_rows_lose_exactly_their_two_empty_outputs(shared_folder: Path) -> None:
    rows, rejected, _ = read_rows(shared_folder / "data" / "alpaca_5000_NC.json")
    assert len(rows) == 4998
    assert [item.reason for item in rejected] == ["empty response"] * 2
    source = json.loads((shared_folder / "data" / "alpaca_5000_NC.json").read_text(encoding="utf-8"))
    empty = [
        f"alpaca_5000_NC.json:{n}" for n, record in enumerate(source, start=1) if not record["output"].strip()
    ]
    assert [item.id for item in rejected] == empty


def test_real_json_lines_keep_their_columns(shared_folder: Path) -> None:
    rows, rejected, _ = read_rows(shared_folder / "data" / "val_rasbt_1100.jsonl")
    assert (len(rows), rejected) == (1075, ())
    assert {row.extra["source"] for row in rows} == {"rasbt"}
    assert rows[0].id == "val_rasbt_1100.jsonl:1"


def no_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


@pytest.mark.parametrize("quality", [float("nan"), float("inf"), {"deep": [1, float("-inf")]}])
def test_written_lines_are_json_by_the_standard(tmp_path: Path, quality: object) -> None:
    path = written(tmp_path, json.dumps(json.loads(GOOD) | {"quality": quality}))
    write_rows(tmp_path / "selected.jsonl", read_rows(path).rows)
    (line,) = (tmp_path / "selected.jsonl").read_text().splitlines()
    json.loads(line, parse_constant=no_constant)
    assert "null" in line


def test_columns_that_ours_would_hide_make_way(tmp_path: Path) -> None:
    own = {"weight": "heavy", "original_weight": 1, "id": 7, "original_id": 8}
    ((row,), *_) = read_rows(written(tmp_path, json.dumps(json.loads(GOOD) | own)))
    write_rows(tmp_path / "selected.jsonl", [row], weight=[0.5])
    found = json.loads((tmp_path / "selected.jsonl").read_text())
    assert (found["id"], found["weight"]) == ("rows.jsonl:1", 0.5)
    assert (found["original_weight"], found["original_weight_2"]) == (1, "heavy")
    assert (found["original_id"], found["original_id_2"]) == (8, 7)


@pytest.mark.parametrize(
    "own", [{"kind": 3}, {"hard": 0.37, "duplicate": False}, {"fault": "none"}, {"fault": None}]
)
def test_columns_named_like_labels_come_back_as_they_were(tmp_path: Path, own: dict) -> None:
    ((row,), _, notices) = read_rows(written(tmp_path, json.dumps(json.loads(GOOD) | own)))
    assert "are read as labels" in notices[-1]
    write_rows(tmp_path / "selected.jsonl", [row])
    assert json.loads((tmp_path / "selected.jsonl").read_text()).items() >= own.items()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "rows.jsonl",
            '{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b", "output": "c"}',
            "rows.jsonl:2: the key 'output' stands twice; keep one of them",
        ),
        (
            "rows.json",
            '[{"instruction": "a", "output": "b", "x": {"y": 1, "y": 2}}]',
            "the key 'y' stands twice",
        ),
        ("rows.csv", "instruction,output,output\na,b,c\n", "rows.csv: the column 'output' stands twice"),
        ("rows.tsv", "instruction\toutput\t\t\na\tb\t\t\n", "rows.tsv: the column '' stands twice"),
    ],
)
def test_what_is_given_twice_is_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(expected)):
        read_rows(path)


def test_a_parquet_column_given_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pyarrow.parquet.write_table(
        pa.Table.from_arrays(columns, ["instruction", "output", "output"]), tmp_path / "rows.parquet"
    )
    with pytest.raises(InputError, match="the column 'output' stands twice"):
        read_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize("column", ["source", "kind", "topic", "nested"])
def test_half_a_character_in_any_column_is_found_before_training(tmp_path: Path, column: str) -> None:
    cut = {"deep": ["cut \ud83d"]} if column == "nested" else "cut \ud83d"
    records = [json.loads(GOOD), json.loads(GOOD) | {column: cut}]
    rows, (rejected,), _ = read_rows(written(tmp_path, "\n".join(map(json.dumps, records))))
    assert len(rows) == 1
    assert (rejected.id, rejected.reason) == ("rows.jsonl:2", "broken characters (half of a surrogate pair)")
    assert repr(column) in rejected.remedy
    write_rejected(tmp_path / "rejected.jsonl", [rejected])
    assert json.loads((tmp_path / "rejected.jsonl").read_text())[column] == cut
