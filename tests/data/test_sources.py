"""Rows from every kind of file, from dataset folders, and from names on the hub."""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from bilevel.data import read_rows, write_rows
from bilevel.data.sources import open_source
from bilevel.errors import InputError

RECORDS = [
    {"prompt": 'Say "a, b".', "completion": "a,\nb", "source": "web"},
    {"prompt": "Say ü.", "completion": "ü", "source": "book"},
]


def as_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion", "source"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)


def as_lines(path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, RECORDS)))


def as_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(RECORDS), path)


def zipped(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_zipped(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_zipped


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", as_lines),
        ("rows.json", lambda path: path.write_text(json.dumps(RECORDS))),
        ("rows.csv", as_csv),
        ("rows.tsv", lambda path: as_csv(path, "\t")),
        ("rows.parquet", as_parquet),
        ("rows", as_parquet),
        ("rows.jsonl.gz", zipped(as_lines)),
        ("rows.csv.gz", zipped(as_csv)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_file_holds_the_same_rows(name: str, write, tmp_path: Path) -> None:
    write(tmp_path / name)
    rows, rejected, notices = read_rows(tmp_path / name)
    assert [(row.prompt, row.output, row.extra["source"]) for row in rows] == [
        tuple(record.values()) for record in RECORDS
    ]
    assert [row.id for row in rows] == [f"{name}:1", f"{name}:2"]
    assert (rejected, notices) == ((), (f"{name}: 2 rows, prompt/completion columns",))


def test_parquet_cells_that_json_does_not_know_are_written_as_text(tmp_path: Path) -> None:
    record = {"prompt": "a", "completion": "b", "when": date(2026, 1, 2), "messages_seen": [{"n": 1}]}
    pyarrow.parquet.write_table(pa.Table.from_pylist([record]), tmp_path / "rows.parquet")
    ((row,), *_) = read_rows(tmp_path / "rows.parquet")
    write_rows(tmp_path / "out.jsonl", [row])
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert (written["when"], written["messages_seen"]) == ("2026-01-02", [{"n": 1}])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.parquet", b"PAR1 not", "no Parquet table"),
        ("rows.parquet", b"", "no Parquet table"),
        ("rows.jsonl.gz", b"\x1f\x8b\x08 not", "broken gzip file"),
        ("rows.jsonl.gz", b"", "the file is empty"),
        ("rows.csv", b"prompt,completion\n", "no rows inside"),
        ("rows.csv", b"prompt,completion\na,b,c\n", "rows.csv:1: this row has more cells than the header"),
        ("rows.csv", b'prompt,completion\n"a,b\n', "broken table near line 1"),
        ("rows.csv", b"text\na\n", "rows.csv:1: no known columns (there: 'text')"),
    ],
)
def test_broken_files_are_one_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        read_rows(tmp_path / name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.csv", "rows.jsonl.gz"])
def test_records_are_read_in_any_order(name: str, tmp_path: Path) -> None:
    records = [{"prompt": f"Say {n} ü.", "completion": str(n)} for n in range(5000)]
    path, kind = tmp_path / name, name.partition(".")[2]
    lines = "\ufeff\n" + "\r\n \u00a0\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(records), path, row_group_size=1500)
    elif kind == "json":
        path.write_text(" \n" * 3000 + json.dumps(records))
    elif kind == "csv":
        path.write_text(
            "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in records)
        )
    else:
        content = lines.encode()
        path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    rows = open_source(path).rows
    assert len(rows) == 5000
    for position in (4999, 0, 1499, 1500, 3000, 2999, 1):
        number = 2 * position + 2 if "jsonl" in kind else position + 1
        assert rows.row(position) == (number, records[position])
    assert [record for _, record in open_source(path).records] == records


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a dataset as the hub has it: a card that names the splits, and their files."""
    folder = tmp_path / "dolly"
    (folder / "data").mkdir(parents=True)
    as_parquet(folder / "data" / "train-00000-of-00001.parquet")
    pyarrow.parquet.write_table(
        pa.Table.from_pylist(RECORDS[:1]), folder / "data" / "validation-00000-of-00001.parquet"
    )
    splits = "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in ("train", "validation"))
    card = f"---\nlicense: mit\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\n# Dolly\n"
    (folder / "README.md").write_text(card)
    return folder


def test_a_dataset_folder_is_read_by_split_and_leaves_no_cache(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    before = sorted(folder.parent.rglob("*"))
    rows, rejected, notices = read_rows("dolly")
    assert [row.id for row in rows] == ["dolly/train:1", "dolly/train:2"]
    assert [(row.prompt, row.output) for row in rows] == [
        (record["prompt"], record["completion"]) for record in RECORDS
    ]
    assert (rejected, notices) == ((), ("dolly/train: 2 rows, prompt/completion columns",))
    assert [row.id for row in read_rows("dolly", ("validation",)).rows] == ["dolly/validation:1"]
    assert [row.id for row in read_rows(f"{folder}:validation").rows] == ["dolly/validation:1"]
    assert [row.id for row in read_rows("dolly:default:train").rows] == ["dolly/train:1", "dolly/train:2"]
    assert [row.id for row in read_rows("dolly:train[1:]").rows] == ["dolly/train[1:]:1"]
    assert sorted(folder.parent.rglob("*")) == before


def test_folders_of_plain_files_and_saved_datasets_are_read(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    as_lines(tmp_path / "plain" / "anything.jsonl")
    made = datasets.Dataset.from_list(RECORDS)
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "both")
    expected = [(record["prompt"], record["completion"]) for record in RECORDS]
    for name, split in (("plain", "train"), ("saved", "train"), ("both", "test")):
        rows = read_rows(tmp_path / name, (split,)).rows
        assert [(row.prompt, row.output) for row in rows] == expected
        assert rows[0].id == f"{name}/{split}:1"


@pytest.mark.parametrize(
    ("source", "splits", "said"),
    [
        ("dolly:exam", ("train",), "dolly: no split 'exam' (there: train, validation); name one of these"),
        (
            "dolly",
            ("test",),
            "dolly: which split? (there: train, validation); name one of these after a colon",
        ),
        ("dolly:other:train", ("train",), "BuilderConfig 'other' not found"),
        ("dolly/README.md:train", ("train",), "a file has no splits; write dolly/README.md"),
        ("empty", ("train",), "doesn't contain any data files); put .parquet"),
        ("scripted", ("train",), "Dataset scripts are no longer supported"),
        ("data/train.jsonl", ("train",), "data/train.jsonl: no such file; check the path"),
        ("nowhere", ("train",), "nowhere: no such file; check the path"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_unusable_datasets_are_one_line(source, splits, said, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    Path("scripted").mkdir()
    Path("scripted/scripted.py").write_text("raise SystemExit(9)")
    with pytest.raises(InputError) as error:
        read_rows(source, splits)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_on_the_hub_without_a_way_to_it_is_one_line(tmp_path: Path) -> None:
    # A process of its own: `datasets` reads this variable when it is imported.
    program = (
        "from bilevel.data import read_rows\nfrom bilevel.errors import InputError\n"
        "try: read_rows('somebody/something:train')\nexcept InputError as error: print(error)"
    )
    environment = os.environ | {"HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.stdout.startswith("somebody/something: no dataset could be read (")
    assert ran.stdout.endswith(
        "check the name, or fetch it where there is a network (hf download --repo-type dataset "
        "somebody/something) and name the folder\n"
    )
    assert ran.stdout.count("\n") == 1
    assert ran.stderr == ""


def test_reading_files_does_not_import_datasets(tmp_path: Path) -> None:
    as_lines(tmp_path / "rows.jsonl")
    program = (
        f"import sys\nfrom bilevel.data import read_rows\nread_rows({str(tmp_path / 'rows.jsonl')!r})\n"
        "print('datasets' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
