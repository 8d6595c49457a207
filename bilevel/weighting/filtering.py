"""Which rows to keep, by their scores: the top share, or a sample in which better rows are likelier.

References:
    Calian et al., DataRater: Meta-Learned Dataset Curation, arXiv 2505.17895 (top share, and the CDF of scores).
    Kool et al., Stochastic Beams and Where to Find Them, ICML 2019 (Gumbel-top-k).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

Scores = Float[np.ndarray, " rows"]
Kept = Bool[np.ndarray, " rows"]


def keep_top(scores: Scores, share: float) -> Kept:
    """Keeps the rows of the highest scores; of equal ones the first.

    Args:
        scores: a score for each row.
        share: of the rows that are kept, in (0, 1]; at least one row.
    """
    kept = np.zeros(len(scores), bool)
    kept[np.argsort(-scores, kind="stable")[: _count(scores, share)]] = True
    return kept


def keep_by_cdf(scores: Scores, share: float, batch: int, rng: np.random.Generator) -> Kept:
    """Keeps each row on its own with the probability that it is among the best of a random batch.

        P(keep i) = P(Binomial(batch - 1, 1 - F(s_i)) < share * batch),    F the share of rows that score lower

    Equal scores count half. So a stream can be filtered row by row as if batches were drawn and cut; the rows that are
    kept are about `share` of all, and a batch of one row keeps any row alike.

    Args:
        scores: a score for each row.
        share: of the rows that are kept, in (0, 1].
        batch: rows of the imagined batch; the larger, the sharper.
        rng: for the draws.
    """
    from scipy.special import bdtr

    ordered = np.sort(scores)
    below = (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")) / 2
    kept = share * batch
    whole = int(kept)
    better = np.clip(1 - below / len(scores), 0.0, 1.0)

    def among_best(places: int) -> np.ndarray:
        if places <= 0:
            return np.zeros(len(scores))
        return np.ones(len(scores)) if places >= batch else bdtr(places - 1, batch - 1, better)

    # Between two whole numbers of places, the share of batches that have one more.
    chance = (1 - (kept - whole)) * among_best(whole) + (kept - whole) * among_best(whole + 1)
    return rng.random(len(scores)) < chance


def keep_by_softmax(scores: Scores, share: float, temperature: float, rng: np.random.Generator) -> Kept:
    """Draws rows without replacement, each draw in proportion to exp(score / temperature) of those that are left.

    Args:
        scores: a score for each row.
        share: of the rows that are kept, in (0, 1]; at least one row.
        temperature: near zero the top share, large a uniform sample.
        rng: for the draws.
    """
    return keep_top(scores / temperature + rng.gumbel(size=len(scores)), share)


def _count(scores: Scores, share: float) -> int:
    return max(1, round(share * len(scores)))
