"""Signals from tokens, against values that can be seen."""

from __future__ import annotations

import numpy as np

from bilevel.data import EncodedRows, Row
from bilevel.data.similarity import token_signals


def encoded(*rows: list[int]) -> EncodedRows:
    width = max(map(len, rows))
    tokens, segments = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], segments[place, : len(row)] = row, 1
    named = tuple(Row(f"t:{place + 1}", "", "", "x") for place in range(len(rows)))
    return EncodedRows(named, tokens, segments, segments > 0)


COMMON = [1, 2, 3, 4, 5, 6, 7]
POOL = encoded(
    COMMON, COMMON, [1, 2, 3, 4, 5, 9, 9], [20, 21, 22, 23, 24, 25, 26], [1, 2], [3, 1, 1, 1, 1, 1, 1]
)


def test_lengths_and_duplication():
    found = token_signals(POOL, encoded([1, 2]))
    assert found.length.tolist() == [7, 7, 7, 7, 2, 7]
    # Of the third row's runs of five, [1 2 3 4 5] stands elsewhere; a row that repeats itself repeats no other.
    np.testing.assert_allclose(found.duplication, [1, 1, 1 / 3, 0, 0, 0])


def test_a_short_row_is_a_run_of_its_own_and_padding_is_none():
    found = token_signals(encoded([1, 2], [1, 2, 0], [1, 2], [3]), encoded([1]))
    np.testing.assert_allclose(found.duplication, [1, 0, 1, 0])


def test_the_unusual_row_is_farthest_from_the_centroid():
    found = token_signals(POOL, encoded([1, 2]))
    assert np.argmax(found.centroid_distance) == 3
    assert np.argmin(found.centroid_distance) in (0, 1)
    assert np.all((found.centroid_distance >= 0) & (found.centroid_distance <= 1))


def test_validation_similarity_is_that_of_the_nearest_row():
    found = token_signals(POOL, encoded([20, 21, 22, 23, 24, 25, 26], [2, 1, 0]))
    np.testing.assert_allclose(found.validation_similarity[3], 1.0)
    assert found.validation_similarity[4] > found.validation_similarity[0] > 0
    alone = token_signals(POOL, encoded([40]))
    assert alone.validation_similarity.tolist() == [0] * 6
