from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.errors import InputError
from bilevel.runs.weights import read_weights, write_weights

COLUMNS = {
    "id": ["rows.json:1", "rows.json:2", "rows.json:3"],
    "weight": jnp.array([0.5, 2.0, 0.5]),
    "loss_start": np.array([1.0, np.nan, 3.0], np.float32),
    "loss_end": [1.0, None, 2.0],
    "fault": ["", "wrong answer", None],
}


def test_columns_come_back_with_gaps_where_nothing_was_measured(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights.parquet", COLUMNS)
    read = read_weights(tmp_path / "weights.parquet")
    assert list(read) == list(COLUMNS)
    assert read["id"].tolist() == COLUMNS["id"]
    np.testing.assert_array_equal(read["weight"], np.array([0.5, 2.0, 0.5], np.float32))
    np.testing.assert_array_equal(read["loss_start"], [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(read["loss_end"], [1.0, np.nan, 2.0])
    assert read["fault"].tolist() == ["", "wrong answer", None]
    assert [path.name for path in tmp_path.iterdir()] == ["weights.parquet"]


def test_other_libraries_read_the_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "weights.parquet"
    write_weights(path, COLUMNS)
    frame = pandas.read_parquet(path)
    assert frame["loss_start"].isna().tolist() == [False, True, False]
    loaded = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert loaded[1]["fault"] == "wrong answer"
    assert loaded[1]["loss_end"] is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"]}, "'weight' is missing"),
        ({"id": ["a"], "weight": [1.0, 2.0]}, "differ in length"),
        ({"id": ["a", "a"], "weight": [1.0, 2.0]}, "an id comes twice"),
        ({"id": ["a", "b"], "weight": [1.0, np.nan]}, "row b weighs nan"),
        ({"id": ["a", "b"], "weight": [-0.5, np.inf]}, "row a weighs -0.5"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, columns: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_weights(tmp_path / "weights.parquet", columns)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.parquet"
    with pytest.raises(InputError, match=r"weights.parquet: no such file"):
        read_weights(path)
    path.write_text("not a table")
    with pytest.raises(InputError, match=r"weights.parquet: no Parquet table"):
        read_weights(path)
