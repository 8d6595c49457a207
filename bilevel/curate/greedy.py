"""Diverse selection, greedy and exact: hard rows whose n-grams were not used up by those chosen before."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from bilevel.core.ranges import check_ranges

Lengths = Literal["as_they_are", "root"]
_ABOVE = 1 + 1e-9
"""Factor by which a sum of floats in another order is certainly not exceeded."""


@dataclass(frozen=True)
class Picks:
    """Rows in the order in which they were picked, and why.

    Attributes:
        ids: their numbers.
        complexity: their S_COM.
        diversity: their S_DIV when they were picked.
        exhausted: how many were picked before all other rows scored 0, their n-grams used up or their complexity 0;
            None where that did not happen. The picks end there.
        weights: of the n-grams at the end, [terms]: to go on with in the next selection.
    """

    ids: Int[np.ndarray, " picked"]
    complexity: Float[np.ndarray, " picked"]
    diversity: Float[np.ndarray, " picked"]
    exhausted: int | None
    weights: Float[np.ndarray, " terms"]

    @property
    def scores(self) -> Float[np.ndarray, " picked"]:
        """What they were picked by, S_COM S_DIV."""
        return self.complexity * self.diversity


def pick_diverse(
    complexity: Float[np.ndarray, " rows"],
    terms: Any,
    count: int,
    decay: float = 0.1,
    weights: Float[np.ndarray, " terms"] | None = None,
    lengths: Lengths = "as_they_are",
) -> Picks:
    """Picks rows by complexity times diversity, each pick lowering the worth of its n-grams.

        S_DIV(i) = sum over terms t of row i:  w_t terms[i, t]            pick argmax_i  complexity_i S_DIV(i)
        then  w_t <- decay w_t  for every term of the row that was picked

    Scores can only fall, so that an old score is an upper bound: a heap of bounds finds each pick with a few new sums,
    where a plain loop takes the sums of all rows. The picks are the plain loop's, one for one; of equal scores the
    lowest number is picked. Sums are exactly rounded, so that rows with the same terms in another order are equal. No
    row is picked twice.

    >>> from bilevel.curate import word_terms
    >>> said = ["red fox", "red fox", "blue hen"]
    >>> pick_diverse(np.array([0.9, 0.8, 0.5]), word_terms(said).matrix, count=2).ids.tolist()
    [0, 2]

    Args:
        complexity: S_COM, or any other score that is not negative. A row whose score is not finite is never picked.
        terms: `scipy.sparse` matrix [rows, terms] without negative entries, such as `word_terms(...).matrix`.
        count: how many rows to pick.
        decay: gamma, in [0, 1]: 0 lets an n-gram count once, 1 leaves diversity out of the order of picks.
        weights: w to begin with, by default 1: what an earlier selection ended with, or `decay ** times used`.
        lengths: `as_they_are`, the paper's, where S_DIV of unit vectors grows as the square root of a row's distinct
            n-grams and long rows win; `root` divides it by that root.

    Raises:
        ValueError: sizes that do not fit, a decay out of range, a negative score, entry or weight.

    References:
        Jia et al., Boosting LLM via Learning from Data Iteratively and Selectively, 2024. Lazy evaluation: Minoux,
        Accelerated greedy algorithms for maximizing submodular set functions, 1978.
    """
    matrix = terms.tocsr()
    rows, width = matrix.shape
    scores = np.asarray(complexity, np.float64)
    worth = np.ones(width) if weights is None else np.array(weights, np.float64)
    check_ranges(
        {"complexity": scores.shape, "weights": worth.shape, "count": count, "decay": decay},
        ("complexity", scores.shape == (rows,), f"one score for each of {rows} rows"),
        ("weights", worth.shape == (width,), f"one weight for each of {width} terms"),
        ("count", count >= 0, "0 or more"),
        ("decay", 0 <= decay <= 1, "in [0, 1]"),
    )
    for name, values in (("complexity", scores), ("terms", matrix.data), ("weights", worth)):
        if np.any(values < 0):
            raise ValueError(f"{name} must not be negative")
    data, columns, borders = matrix.data.astype(np.float64), matrix.indices, matrix.indptr
    sizes = np.sqrt(np.maximum(np.diff(borders), 1)) if lengths == "root" else np.ones(rows)

    factors = np.where(np.isfinite(scores), scores, 0.0) / sizes
    bounds = factors * (matrix @ worth) * _ABOVE
    # (minus the bound, row, when it was found). A bound is found twice after a pick, cheaply and then exactly; one that
    # was found exactly and after the last pick is the score, and on top no other bound reaches it.
    heap = [(-float(bounds[row]), int(row), -1) for row in np.flatnonzero(bounds > 0)]
    heapq.heapify(heap)
    picked, gains = list[int](), list[float]()
    while heap and len(picked) < count:
        _, row, when = heap[0]
        here = slice(borders[row], borders[row + 1])
        now, exactly = 2 * len(picked), 2 * len(picked) + 1
        if when == exactly:
            heapq.heappop(heap)
            gains.append(_diversity(data[here], worth[columns[here]], sizes[row]))
            picked.append(row)
            worth[columns[here]] *= decay
        elif when == now:
            score = float(scores[row]) * _diversity(data[here], worth[columns[here]], sizes[row])
            _replace_top(heap, score, row, exactly)
        else:
            rough = float(np.dot(data[here], worth[columns[here]]))
            _replace_top(heap, float(factors[row]) * rough * _ABOVE, row, now)
    return Picks(
        np.array(picked, np.int64),
        scores[np.array(picked, np.int64)],
        np.array(gains, np.float64),
        len(picked) if len(picked) < count else None,
        worth,
    )


def _diversity(
    values: Float[np.ndarray, " terms"], weights: Float[np.ndarray, " terms"], size: float
) -> float:
    """S_DIV of a row, the sum exactly rounded."""
    return math.fsum((values * weights).tolist()) / float(size)


def _replace_top(heap: list[tuple[float, int, int]], bound: float, row: int, when: int) -> None:
    """Puts another bound of the row on top where it belongs; a row that scores 0 goes."""
    if bound > 0:
        heapq.heapreplace(heap, (-bound, row, when))
    else:
        heapq.heappop(heap)
