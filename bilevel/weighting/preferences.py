"""What weights prefer: their rank correlation with what is known of the rows, and how far they have gathered on few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_FEWEST_ROWS = 3


@dataclass(frozen=True)
class Preferences:
    """What the weights of a pool prefer at one moment.

    Attributes:
        correlations: Spearman's rank correlation of the weight with each signal, in [-1, 1]; None where the weight or
            the signal is the same for all rows. Of N unrelated rows it deviates from zero by about 1 / sqrt(N - 1).
        sources: mean weight of the rows of each source, relative to the pool's mean.
        entropy: of the weights as shares, over its largest value: 1 for equal weights, 0 for a single row.
        effective_share: (sum w)^2 / sum w^2 over the number of rows: 1 for equal weights, 1 / N for a single row.
        collapsed: whether the effective share is below the alarm's.
    """

    correlations: Mapping[str, float | None]
    sources: Mapping[str, float]
    entropy: float
    effective_share: float
    collapsed: bool


def preferences(
    weights: np.ndarray, signals: Mapping[str, np.ndarray], sources: Sequence[str], alarm: float = 0.1
) -> Preferences:
    """Measures what weights prefer.

    Args:
        weights: a weight for each row, not negative, at least one positive.
        signals: what is known of the rows: columns by name, nan where a row has no value.
        sources: where each row comes from.
        alarm: effective share of the rows below which the weights count as collapsed.
    """
    weights = np.asarray(weights, np.float64)
    shares = weights / weights.sum()
    positive = shares[shares > 0]
    largest = np.log(len(shares))
    effective = 1.0 / float(np.sum(shares**2)) / len(shares)
    names = np.asarray(sources, dtype=object)
    return Preferences(
        {name: rank_correlation(weights, values) for name, values in signals.items()},
        {name: float(np.mean(shares[names == name])) * len(shares) for name in sorted(set(sources))},
        float(-np.sum(positive * np.log(positive)) / largest) if largest > 0 else 1.0,
        effective,
        effective < alarm,
    )


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where it has no meaning.

    That is where fewer than three pairs are known (no nan), or one of the two is constant.

    References:
        Spearman, The Proof and Measurement of Association between Two Things, 1904.
    """
    known = np.isfinite(first) & np.isfinite(second)
    if known.sum() < _FEWEST_ROWS:
        return None
    ranks = [_ranks(values[known]) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    spread = np.sqrt(np.prod([np.sum(values**2) for values in centred]))
    return float(np.clip(np.sum(centred[0] * centred[1]) / spread, -1.0, 1.0)) if spread > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
