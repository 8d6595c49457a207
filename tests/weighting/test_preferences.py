"""Preferences against SciPy's rank correlation and values that can be seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from bilevel.weighting.preferences import preferences, rank_correlation


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_scipys_with_ties(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, 40).astype(float), rng.normal(size=40).round(1)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1.0)
    assert rank_correlation(first, -first) == pytest.approx(-1.0)


def test_rank_correlation_leaves_unknown_values_out_and_knows_when_it_means_nothing():
    first = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    assert rank_correlation(first, np.array([1.0, 2.0, np.inf, 3.0, 0.0])) == pytest.approx(1.0)
    assert rank_correlation(first, np.ones(5)) is None
    assert rank_correlation(first[:2], first[:2]) is None


def test_equal_weights_prefer_nothing():
    found = preferences(np.full(8, 3.0), {"loss": np.arange(8.0)}, ["a"] * 6 + ["b"] * 2)
    assert found.correlations == {"loss": None}
    assert found.sources == pytest.approx({"a": 1.0, "b": 1.0})
    assert (found.entropy, found.effective_share) == (pytest.approx(1.0), pytest.approx(1.0))
    assert not found.collapsed


def test_weights_on_one_row_are_a_collapse():
    weights = np.array([0.0, 0.0, 16.0] + [0.0] * 13)
    found = preferences(weights, {}, ["a", "a", "b"] + ["a"] * 13)
    assert found.sources == {"a": 0.0, "b": 16.0}
    assert (found.entropy, found.effective_share) == (pytest.approx(0.0), pytest.approx(1 / 16))
    assert found.collapsed
    assert not preferences(weights, {}, ["a"] * 16, alarm=0.05).collapsed
