"""Data sets on disk: what is put comes back, and what is not whole is refused."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from bilevel.data import ArrayRows, EncodedRows, Lineage, Row, pack_rows
from bilevel.errors import InputError
from bilevel.storage.row_store import RowStore
from tests.data.test_dataset import ARRAYS, ROWS

CHILD = Row(
    "a:1~2.1",
    "And \u2028 2?",
    "",
    "4",
    {"fault": ""},
    {"tags": ["x", None], "half": "\ud800"},
    "Be brief.",
    (("Twice 1?", "2"),),
    "messages",
    {"messages": [{"role": "user"}]},
    Lineage("a:1", 2, "refiner", {"loss": 0.1}),
)
CHANGED = dataclasses.replace(ROWS, rows=(CHILD, *ROWS.rows[1:]))
NAMED = ArrayRows(ARRAYS.columns, ids=["a\nb", "c", "ü", ""])


@pytest.mark.parametrize("rows", [ROWS, CHANGED, ARRAYS, NAMED], ids=["rows", "lineage", "arrays", "ids"])
def test_what_is_put_comes_back(tmp_path: Path, rows: EncodedRows | ArrayRows) -> None:
    fingerprint = RowStore(tmp_path / "rows").put(rows)
    assert fingerprint == rows.fingerprint
    found = RowStore(tmp_path / "rows").get(fingerprint)
    assert type(found) is type(rows)
    assert found.fingerprint == fingerprint
    assert found.sizes == rows.sizes
    assert found.names(range(4)) == rows.names(range(4))
    ids = [3, -1, 0]
    for name, values in rows.batch(ids).items():
        assert found.batch(ids)[name].dtype == values.dtype
        np.testing.assert_array_equal(found.batch(ids)[name], values)
    if isinstance(rows, EncodedRows):
        assert found.rows == rows.rows
        assert [row.source for row in found.rows] == [row.source for row in rows.rows]


def test_a_set_that_is_put_again_is_not_written_again(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    assert store.known == ()
    store.put(ROWS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    store.put(dataclasses.replace(ROWS))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    store.put(ARRAYS)
    assert store.known == tuple(sorted([ROWS.fingerprint, ARRAYS.fingerprint]))


def test_a_set_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RowStore(tmp_path)

    def fails(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bilevel.storage.row_store.seal", fails)
        with pytest.raises(KeyboardInterrupt):
            store.put(ROWS)
    assert store.known == ()
    assert list(tmp_path.iterdir()) == []
    # What a killed process leaves behind is no data set, and stands in nobody's way.
    (tmp_path / ".unfinished-abc").mkdir()
    assert store.put(ROWS) in store.known
    assert len(store.known) == 1


def test_other_kinds_of_data_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"PackedRows cannot be stored; give EncodedRows .* or ArrayRows"):
        RowStore(tmp_path).put(pack_rows(ROWS, [range(4)]))


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}/abc: no such rows"):
        RowStore(tmp_path).get("abc")


def damaged(folder: Path, how: str) -> None:
    if how == "cut":
        file = folder / "arrays.safetensors"
        file.write_bytes(file.read_bytes()[:-3])
    elif how == "seal.json":
        (folder / how).unlink()
    elif how == "bit":
        file = folder / "columns.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        (folder / how).unlink()


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("cut", "arrays.safetensors is damaged"),
        ("bit", "columns.safetensors is damaged"),
        ("rows.jsonl", "rows.jsonl is missing"),
        ("seal.json", "seal.json is missing"),
    ],
)
def test_damaged_rows_are_refused_and_can_be_put_again(tmp_path: Path, how: str, what: str) -> None:
    store = RowStore(tmp_path)
    folder = tmp_path / store.put(ROWS)
    damaged(folder, how)
    with pytest.raises(InputError, match=rf"{folder}: damaged rows \({what}\)"):
        store.get(ROWS.fingerprint)
    store.put(ROWS)
    assert store.get(ROWS.fingerprint).fingerprint == ROWS.fingerprint


def test_rows_under_another_name_are_refused(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    shutil.move(tmp_path / store.put(ROWS), tmp_path / "0123456789abcdef")
    with pytest.raises(InputError, match="these are other rows than its name says"):
        store.get("0123456789abcdef")


def test_a_set_without_columns_or_rows_comes_back(tmp_path: Path) -> None:
    empty = EncodedRows((), np.zeros((0, 8), np.int32), np.zeros((0, 8), np.int32), np.zeros((0, 8), bool))
    store = RowStore(tmp_path)
    assert store.get(store.put(empty)).fingerprint == empty.fingerprint
