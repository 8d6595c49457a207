"""Rows as data sets: columns that travel with them, fingerprints, sizes, names."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from bilevel.data import ArrayRows, Dataset, EncodedRows, Lineage, PackedRows, Row, pack_rows
from bilevel.errors import InputError

LENGTHS = np.array([3, 5, 2, 4])


def encoded(width: int = 6, **columns: np.ndarray) -> EncodedRows:
    inside = np.arange(width) < LENGTHS[:, None]
    rows = tuple(Row(f"a:{line}", "Ask.", "", "Answer.", {"fault": ""}) for line in range(1, 5))
    tokens = np.where(inside, 1 + np.arange(width) + 10 * np.arange(4)[:, None], 0)
    return EncodedRows(rows, tokens.astype(np.int32), inside.astype(np.int32), inside, columns)


QUESTIONS = np.array([0, 7, -1, 0])
LOGS = np.where(encoded().segments > 0, -np.arange(24.0).reshape(4, 6) - 1, 0).astype(np.float32)
ROWS = encoded(question_id=QUESTIONS, age=np.array([1.5, 2.5, 3.5, 4.5]), log_probability=LOGS)
ARRAYS = ArrayRows(
    {"x": np.arange(8.0).reshape(4, 2), "right": np.array([True, False, True, True]), "source_id": QUESTIONS}
)


def test_all_kinds_of_rows_are_data_sets() -> None:
    for rows in (ROWS, pack_rows(ROWS, [range(4)]), ARRAYS):
        assert isinstance(rows, Dataset)
        assert len(rows.fingerprint) == 16
        assert len(rows) == rows.sizes["row_id"] == 4
    assert dict(ROWS.sizes) == {"row_id": 4, "question_id": 8}
    assert dict(ARRAYS.sizes) == {"row_id": 4, "source_id": 8}
    assert dict(ROWS.select([2]).sizes) == {"row_id": 1, "question_id": 0}


def test_names_are_stable_ids() -> None:
    assert ROWS.names([3, -1, 0]) == pack_rows(ROWS, [range(4)]).names([3, -1, 0]) == ["a:4", "", "a:1"]
    assert ARRAYS.names(np.array([3, -1])) == ["row:4", ""]
    assert ArrayRows({"x": np.ones(2)}, ids=["one", "two"]).names([-1, 1]) == ["", "two"]


def test_batches_carry_every_column() -> None:
    batch = ROWS.batch(np.array([[2, -1], [1, 3]]))
    np.testing.assert_array_equal(batch["question_id"], [[-1, -1], [7, 0]])
    assert batch["question_id"].dtype == np.int32
    np.testing.assert_array_equal(batch["age"], [[3.5, 0], [2.5, 4.5]])
    np.testing.assert_array_equal(batch["log_probability"][1], LOGS[[1, 3]])
    assert not batch["log_probability"][0, 1].any()


def test_packing_carries_every_column() -> None:
    ids = np.array([[2, -1, 0], [1, 3, -1]])
    padded, packed = ROWS.batch(ids), PackedRows(ROWS, 9, (1,)).batch(ids)
    assert packed["log_probability"].shape == packed["tokens"].shape == (2, 1, 9)
    for name in ("question_id", "age"):
        np.testing.assert_array_equal(packed[name], padded[name])
    for piece in range(2):
        for row in range(3):
            mine = packed["token_row"][piece] == row
            real = padded["segments"][piece, row] > 0
            for name in ("tokens", "log_probability"):
                np.testing.assert_array_equal(packed[name][piece][mine], padded[name][piece, row][real])
    assert not packed["log_probability"][packed["token_row"] < 0].any()


def test_indices_of_tokens_are_filled_with_none() -> None:
    sense = np.where(ROWS.segments > 0, 2, 0)
    rows = encoded(sense_id=sense)
    assert rows.sizes["sense_id"] == 3
    packed = PackedRows(rows, 12, (1,)).batch([0, -1])
    np.testing.assert_array_equal(packed["sense_id"], [[2] * 3 + [-1] * 9])
    np.testing.assert_array_equal(rows.batch([-1])["sense_id"], [[-1] * 6])


def test_selected_rows_keep_their_columns() -> None:
    chosen = ROWS.select([3, 1])
    assert chosen.names([0, 1]) == ["a:4", "a:2"]
    np.testing.assert_array_equal(chosen.batch([1])["log_probability"], LOGS[[1]])
    np.testing.assert_array_equal(ARRAYS.select([3, 1]).batch([0, 1])["x"], [[6, 7], [2, 3]])
    assert ARRAYS.select([3, 1]).names([0, 1]) == ["row:4", "row:2"]


def test_joined_rows_are_as_wide_as_the_widest() -> None:
    wide = encoded(8, log_probability=np.ones((4, 8), np.float32))
    narrow = encoded(log_probability=LOGS)
    both = narrow.joined(wide, narrow)
    assert both.tokens.shape == (12, 8)
    np.testing.assert_array_equal(both.tokens[:4, :6], narrow.tokens)
    np.testing.assert_array_equal(both.lengths, np.tile(LENGTHS, 3))
    np.testing.assert_array_equal(both.columns["log_probability"][8:, :6], LOGS)
    assert not both.columns["log_probability"][:4, 6:].any()
    arrays = ARRAYS.joined(ArrayRows(ARRAYS.columns, ids=["b", "c", "d", "e"]))
    np.testing.assert_array_equal(arrays.batch([5])["x"], [[2, 3]])
    assert arrays.names([0, 7]) == ["row:1", "e"]
    with pytest.raises(InputError, match="column 'age' is not in all of the data sets"):
        ROWS.joined(encoded(question_id=QUESTIONS, log_probability=LOGS))
    with pytest.raises(InputError, match=r"column 'x' has rows of the shapes \(2,\) and \(3,\)"):
        ARRAYS.joined(ArrayRows({**ARRAYS.columns, "x": np.ones((4, 3))}))
    with pytest.raises(InputError, match="two rows have the id 'row:1'"):
        ARRAYS.joined(ARRAYS)


def test_rows_widen_and_never_shrink() -> None:
    np.testing.assert_array_equal(ROWS.widened(8).tokens[:, :6], ROWS.tokens)
    assert ROWS.widened(6) is ROWS
    with pytest.raises(InputError, match="rows of width 6 do not fit into a width of 5"):
        ROWS.widened(5)


def test_a_fingerprint_is_of_texts_labels_lineage_tokens_and_columns() -> None:
    assert ROWS.fingerprint == dataclasses.replace(ROWS).fingerprint
    first = ROWS.rows[0]

    def with_first(**changes: object) -> EncodedRows:
        return dataclasses.replace(ROWS, rows=(dataclasses.replace(first, **changes), *ROWS.rows[1:]))

    tokens, logs = ROWS.tokens.copy(), LOGS.copy()
    tokens[3, 3] += 1
    logs[0, 0] -= 1
    others = [
        with_first(output="Another."),
        with_first(labels={"fault": "wrong"}),
        with_first(lineage=Lineage("a:9", 1, "refiner")),
        with_first(lineage=Lineage("a:9", 1, "refiner", {"loss": 1.0})),
        dataclasses.replace(ROWS, tokens=tokens),
        dataclasses.replace(ROWS, columns={**ROWS.columns, "log_probability": logs}),
        dataclasses.replace(ROWS, columns={"question_id": QUESTIONS}),
        ROWS.select([1, 0, 2, 3]),
        ROWS.widened(8),
        ARRAYS,
        ArrayRows(ARRAYS.columns, ids=list("abcd")),
        ArrayRows({**ARRAYS.columns, "x": np.arange(8.0, dtype=np.float32).reshape(4, 2)}),
    ]
    assert len({rows.fingerprint for rows in [ROWS, *others]}) == 1 + len(others)
    assert pack_rows(ROWS, [range(4)]).fingerprint == ROWS.fingerprint


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    code = "from tests.data.test_dataset import ARRAYS, ROWS; print(ROWS.fingerprint, ARRAYS.fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [ROWS.fingerprint, ARRAYS.fingerprint]


def test_the_order_of_columns_changes_nothing() -> None:
    turned = dict(reversed(ROWS.columns.items()))
    assert dataclasses.replace(ROWS, columns=turned).fingerprint == ROWS.fingerprint


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tokens", np.ones(4), "column 'tokens' would overwrite the rows' own tokens"),
        ("segments", np.ones(4), "column 'segments' would overwrite"),
        ("loss_mask", np.ones(4), "column 'loss_mask' would overwrite"),
        ("token_row", np.ones(4), "column 'token_row' would overwrite"),
        ("row_id", np.arange(4), "column 'row_id' would overwrite"),
        ("kind", np.array(list("abcd")), "column 'kind' holds <U1, no numbers"),
        ("age", np.ones(3), r"column 'age' has the shape \(3,\); give it one entry for each of 4 rows"),
        (
            "age",
            np.ones((4, 5)),
            r"column 'age' has the shape \(4, 5\); give one number a row, \(4,\), or one a",
        ),
        ("user_id", np.ones(4), "column 'user_id' is an index, but holds float64"),
        ("user_id", np.array([0, 1, -2, 3]), "column 'user_id' is an index, but holds -2 .. 3"),
        ("user_id", np.array([0, 1, 2**31, 3]), "column 'user_id' is an index, but holds 0 .. 2147483648"),
    ],
)
def test_columns_that_do_not_fit_are_refused_by_name(name: str, values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoded(**{name: values})


@pytest.mark.parametrize(
    ("columns", "ids", "message"),
    [
        ({}, None, "rows need at least one column"),
        ({"x": np.array(1.0)}, None, "column 'x' has no axis of rows"),
        ({"x": np.ones(2), "y": np.ones(3)}, None, r"column 'y' has the shape \(3,\)"),
        ({"row_id": np.arange(2)}, None, "column 'row_id' would overwrite the rows' own row_id"),
        ({"x": np.array(["a", "b"])}, None, "column 'x' holds <U1, no numbers"),
        ({"x": np.ones(2)}, ["a"], "1 ids for 2 rows"),
        ({"x": np.ones(2)}, ["a", "a"], "two rows have the id 'a'"),
    ],
)
def test_arrays_that_are_no_rows_are_refused(columns: dict, ids: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArrayRows(columns, ids)


def test_rows_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions must lie in -1 .. 3, got 0 .. 4"):
        ARRAYS.batch([0, 4])
