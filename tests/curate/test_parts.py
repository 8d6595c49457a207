"""Thresholds, n-gram diversity, and the order that a selection leaves."""

from __future__ import annotations

import numpy as np
import pytest

from bilevel.curate import Threshold, ngram_diversity, reordered
from bilevel.curate.thresholds import AUTHORS_COMPLEXITY, AUTHORS_DIVERSITY, AUTHORS_QUALITY

VALUES = np.array(
    [1.0, 2.0, 2.0, 3.0, 7.0]
)  # mean 3, population deviation sqrt(4.4), sample deviation sqrt(5.5)


@pytest.mark.parametrize(
    ("threshold", "line", "flagged"),
    [
        (Threshold("above", 1.0), 3 + 4.4**0.5, [4]),
        (Threshold("above", 1.0, ddof=1), 3 + 5.5**0.5, [4]),
        (Threshold("below", 0.5), 3 - 0.5 * 4.4**0.5, [0]),
        (Threshold("above", 0.0), 3.0, [4]),  # strict: the row at the mean stays
        (Threshold("above", share=0.4), 3.0, [3, 4]),
        (Threshold("below", share=0.4), 2.0, [0, 1]),  # of equal ones the first
        (Threshold("below", share=0.0), float("nan"), []),
        (Threshold("above", share=1.0), 1.0, [0, 1, 2, 3, 4]),
        (AUTHORS_COMPLEXITY, 3 + 4.4**0.5, [4]),
        (AUTHORS_DIVERSITY, 3 - 1.5 * 4.4**0.5, []),
        (AUTHORS_QUALITY, 3 - 1.5 * 5.5**0.5, []),
    ],
)
def test_a_threshold_on_a_fixed_vector(threshold, line, flagged):
    assert threshold.value(VALUES) == pytest.approx(line, nan_ok=True)
    assert np.flatnonzero(threshold.flags(VALUES)).tolist() == flagged


def test_what_was_not_measured_moves_no_threshold_and_is_never_flagged():
    for threshold in (
        Threshold("above"),
        Threshold("below", 0.5),
        Threshold("above", share=0.4),
        AUTHORS_QUALITY,
    ):
        holes = np.array([np.nan, *VALUES[:2], np.inf, *VALUES[2:], -np.inf])
        assert threshold.value(holes) == threshold.value(VALUES)
        assert threshold.flags(holes)[[1, 2, 4, 5, 6]].tolist() == threshold.flags(VALUES).tolist()
        assert not threshold.flags(holes)[[0, 3, 7]].any()
    assert not Threshold("above").flags(np.array([np.nan, np.nan])).any()
    assert not Threshold("above", ddof=1).flags(np.array([4.0])).any()


def test_hard_rows_are_hard_before_and_after_training():
    before, now = np.array([1.0, 1, 1, 9]), np.array([1.0, 9, 1, 9])
    both = AUTHORS_COMPLEXITY.flags(before) & Threshold("above", 0.5).flags(now)
    assert both.tolist() == [False, False, False, True]


def test_thresholds_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], not 1.5"):
        Threshold("above", share=1.5)
    with pytest.raises(ValueError, match="deviations must be finite, not nan"):
        Threshold("above", deviations=float("nan"))


def test_ngram_diversity_counts_by_hand():
    found = ngram_diversity(["a b a b", "A b c", "x", "x y!"], size=2)
    # a b, b a, a b | a b, b c | - | x y, y !
    np.testing.assert_allclose(found.distinct, [2 / 3, 1, np.nan, 1])
    np.testing.assert_allclose(found.own, [1 / 2, 1 / 2, np.nan, 1])
    assert found.together == 5 / 7
    tokens = ngram_diversity([[1, 2, 1, 2], [1, 2, 3], [7], [7, 8, 9]], size=2)
    np.testing.assert_allclose(tokens.own, found.own)
    assert np.isnan(ngram_diversity(["a"], size=2).together)
    with pytest.raises(ValueError, match="size must be 1 or more"):
        ngram_diversity(["a"], size=0)


SCORES = np.array([0.9, 1.5, 0.4, np.nan, 0.8, 1.1, 0.7, 0.95])


def test_the_authors_order_is_chosen_then_too_hard_then_the_rest_then_what_was_not_looked_at():
    order = np.array([5, 2, 0, 3, 1, 4, 6, 7])
    found = reordered(order, np.array([4, 0]), SCORES, 6, "author")
    # Of the first six: 4 and 0 as chosen; 5 and 1 at 1 or above, in their order; 2 by its score; 3 without one.
    assert found.tolist() == [4, 0, 5, 1, 2, 3, 6, 7]


def test_the_clean_order_puts_what_is_too_hard_last_and_lets_others_rise():
    order = np.array([5, 2, 0, 3, 1, 4, 6, 7])
    found = reordered(order, np.array([4, 0]), SCORES, 6)
    assert found.tolist() == [4, 0, 7, 6, 2, 1, 5, 3]


@pytest.mark.parametrize("form", ["clean", "author"])
def test_orders_keep_every_row_once_and_equal_rows_in_place(form):
    rng = np.random.default_rng(0)
    scores, order = rng.choice([0.2, 0.5, 1.0, 1.3, np.nan], 50), rng.permutation(50)
    found = reordered(order, order[[7, 3]], scores, 30, form)
    assert sorted(found.tolist()) == list(range(50))
    places = {row: place for place, row in enumerate(order.tolist())}
    others = [row for row in found[: 50 if form == "clean" else 30].tolist() if row not in order[[7, 3]]]
    for score in (0.2, 0.5, 1.0, 1.3):
        equal = [places[row] for row in others if scores[row] == score]
        assert equal == sorted(equal)
        assert len(equal) > 1
