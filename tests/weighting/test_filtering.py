"""Keeping rows by score, against probabilities counted by drawing batches."""

from __future__ import annotations

import numpy as np
import pytest

from bilevel.weighting.filtering import keep_by_cdf, keep_by_softmax, keep_top


def test_the_top_share_is_kept_and_the_first_of_equals():
    assert keep_top(np.array([0.0, 3.0, 1.0, 2.0]), 0.5).tolist() == [False, True, False, True]
    assert keep_top(np.zeros(4), 0.5).tolist() == [True, True, False, False]
    assert keep_top(np.arange(4.0), 0.01).tolist() == [False, False, False, True]
    assert keep_top(np.arange(4.0), 1.0).all()


def test_the_cdf_keeps_a_row_as_often_as_it_is_among_the_best_of_a_batch():
    rng = np.random.default_rng(0)
    scores, batch, share = rng.normal(size=40), 6, 0.5
    kept = np.mean([keep_by_cdf(scores, share, batch, rng) for _ in range(4000)], axis=0)
    drawn = np.zeros(40)
    for row in range(40):
        others = scores[rng.integers(0, 40, (4000, batch - 1))]
        better = np.sum(others > scores[row], axis=1) + np.sum(others == scores[row], axis=1) / 2
        drawn[row] = np.mean(better < share * batch)
    np.testing.assert_allclose(kept, drawn, atol=0.06)
    assert kept.mean() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("share", [0.1, 0.37, 1.0])
def test_the_cdf_keeps_about_the_share_whatever_the_batch(share):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=4000)
    for batch in (1, 7, 64):
        kept = keep_by_cdf(scores, share, batch, rng)
        assert kept.mean() == pytest.approx(share, abs=0.03)
        if batch == 64 and share < 1:
            assert scores[kept].mean() > scores[~kept].mean() + 0.5


def test_the_temperature_leads_from_the_top_share_to_a_uniform_sample():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=200)
    np.testing.assert_array_equal(keep_by_softmax(scores, 0.3, 1e-6, rng), keep_top(scores, 0.3))
    warm = np.mean([keep_by_softmax(scores, 0.3, 1e6, rng) for _ in range(600)], axis=0)
    np.testing.assert_allclose(warm, 0.3, atol=0.08)
    assert keep_by_softmax(scores, 0.3, 1.0, rng).sum() == 60


def test_softmax_draws_in_proportion():
    rng = np.random.default_rng(3)
    scores = np.log(np.array([1.0, 2.0, 7.0]))
    kept = np.mean([keep_by_softmax(scores, 1 / 3, 1.0, rng) for _ in range(6000)], axis=0)
    np.testing.assert_allclose(kept, [0.1, 0.2, 0.7], atol=0.03)
