"""Blocked nearest neighbours beside all similarities at once."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bilevel.curate import nearest as module
from bilevel.curate import neighbours
from bilevel.errors import InputError
from bilevel.layout import data_layout


def dense(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in float64; of equally near ones the first."""
    exact = vectors.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    unit = np.divide(exact, norms, out=np.zeros_like(exact), where=norms > 0)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    index = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, index, axis=1), index


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that a few hundred rows fill several times, unevenly."""
    monkeypatch.setattr(module, "_QUERIES", 48)
    monkeypatch.setattr(module, "_KEYS", 150)
    monkeypatch.setattr(module, "_GROUP", 8)


@pytest.mark.parametrize(
    ("rows", "width", "k"), [(320, 12, 2), (149, 3, 5), (151, 7, 1), (20, 4, 19), (2, 3, 1)]
)
def test_neighbours_are_those_of_all_similarities_at_once(small_blocks, rows, width, k):
    vectors = np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)
    found = neighbours(vectors, k)
    similarity, index = dense(vectors, k)
    assert found.similarity.dtype == np.float32
    np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)
    np.testing.assert_array_equal(found.ids, index)


def test_duplicates_are_neighbours_and_equally_near_rows_come_in_order(small_blocks):
    rng = np.random.default_rng(0)
    # Unit vectors along axes: every cosine is exactly 0 or 1.
    vectors = np.eye(8, dtype=np.float32)[rng.integers(0, 8, 400)] * 2.0
    found = neighbours(vectors, 7)
    similarity, index = dense(vectors, 7)
    np.testing.assert_array_equal(found.ids, index)
    np.testing.assert_array_equal(found.similarity, similarity)
    assert np.all(found.ids != np.arange(400)[:, None])


def test_vectors_of_zeros_and_of_any_length_are_compared_by_direction(small_blocks):
    vectors = np.array([[0, 0], [1e30, 0], [1e-30, 1e-30], [0, 5e25]], np.float32)
    found = neighbours(vectors, 3)
    np.testing.assert_allclose(found.similarity[0], 0.0, atol=0)
    assert found.ids[0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.similarity[2], [0.5**0.5, 0.5**0.5, 0.0], rtol=1e-6)


def test_eight_devices_find_the_neighbours_of_one(small_blocks):
    vectors = np.random.default_rng(1).normal(size=(203, 6)).astype(np.float32)
    one, eight = neighbours(vectors, 3), neighbours(vectors, 3, data_layout(jax.devices()))
    np.testing.assert_array_equal(eight.ids, one.ids)
    np.testing.assert_allclose(eight.similarity, one.similarity, atol=1e-6)


def test_what_has_no_neighbours_is_refused():
    vectors = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="3 rows have no 3 neighbours each: take at most 2"):
        neighbours(vectors, 3)
    with pytest.raises(ValueError, match="k must be 1 or more, not 0"):
        neighbours(vectors, 0)
    vectors[1, 0] = np.nan
    with pytest.raises(InputError, match="the vector of row 1 is not finite"):
        neighbours(vectors, 1)
