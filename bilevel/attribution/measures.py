"""How far scores can be trusted: what retraining says of them, with intervals.

References:
    Park et al., TRAK: Attributing Model Behavior at Scale, ICML 2023 (the linear datamodeling score).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

_RESAMPLED = 1000


@dataclass(frozen=True)
class Estimated:
    """A number with its interval of 95%."""

    value: float
    low: float
    high: float


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one of them says nothing."""
    ranks = [rankdata(each) for each in (left, right)]
    if any(np.ptp(each) == 0 for each in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def predicted_losses(
    scores: Float[np.ndarray, "queries pool"],
    weights: Float[np.ndarray, " pool"],
    left_out: Bool[np.ndarray, "subsets pool"],
) -> Float[np.ndarray, "queries subsets"]:
    """By how much the loss should change where rows are left out: - sum of w_i score_i over them."""
    return -(scores * weights) @ left_out.T


def linear_datamodeling_score(
    predicted: Float[np.ndarray, "queries subsets"],
    losses: Float[np.ndarray, "queries subsets"],
    seed: int = 0,
) -> Estimated:
    """LDS: the rank correlation of predicted and retrained losses over subsets, its mean over queries.

    The interval is a bootstrap over subsets and queries together.

    Args:
        predicted: as `predicted_losses` has them.
        losses: of the models that were trained without the subsets.
        seed: of the bootstrap.
    """
    random = np.random.default_rng(seed)
    queries, subsets = losses.shape

    def score(rows: np.ndarray, columns: np.ndarray) -> float:
        return float(
            np.mean([rank_correlation(predicted[row][columns], losses[row][columns]) for row in rows])
        )

    def drawn(count: int) -> np.ndarray:
        return np.asarray(random.integers(0, count, size=count))

    resampled = [score(drawn(queries), drawn(subsets)) for _ in range(max(100, _RESAMPLED // queries))]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimated(score(np.arange(queries), np.arange(subsets)), float(low), float(high))


def most_helpful(
    scores: Float[np.ndarray, " pool"], weights: Float[np.ndarray, " pool"], share: float
) -> Bool[np.ndarray, " pool"]:
    """The share of the rows, at least one, whose removal should raise the loss most."""
    count = max(1, round(share * len(scores)))
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(scores * weights, kind="stable")[:count]] = True
    return chosen
