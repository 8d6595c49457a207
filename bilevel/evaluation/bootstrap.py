"""How far a metric may be trusted, and whether two models differ in it: the bootstrap over rows, and signs of rows."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr

from bilevel.evaluation.metrics import Columns, Metric
from bilevel.report.intervals import CONFIDENCE

REPLICATES = 2000
"""How many times rows are drawn anew; the ends of an interval then move by about a fiftieth of its width."""
SEED = 0
_DRAWN_AT_ONCE = 2**21


class Estimate(NamedTuple):
    """A metric over some rows, with the 95% interval of what it would be over all rows of their kind.

    Attributes:
        value: of these rows.
        low: lower end of the interval.
        high: upper end.
        rows: how many rows.
    """

    value: float
    low: float
    high: float
    rows: int


class Difference(NamedTuple):
    """How a model differs from another on the same rows; positive where its number is larger.

    Attributes:
        value: difference of the two models' metrics.
        low: lower end of its 95% interval.
        high: upper end.
        larger: rows on which the model's own number is larger than the other's.
        smaller: rows on which it is smaller.
        p_value: of the exact sign test, that larger and smaller are equally likely.
    """

    value: float
    low: float
    high: float
    larger: int
    smaller: int
    p_value: float


def estimate(metric: Metric, columns: Columns, replicates: int = REPLICATES, seed: int = SEED) -> Estimate:
    """A metric with its percentile bootstrap interval.

    Rows are drawn with replacement, as many as there are, `replicates` times; the interval reaches from the 2.5% to the
    97.5% quantile of the metric over the draws (Efron and Tibshirani, 1993, chapter 13). Where a share is 0 or 1 in the
    rows at hand, every draw says the same, and the interval is the exact one of Clopper and Pearson (1934).

    >>> share = Metric("accuracy", "accuracy", of="correct", share=True)
    >>> estimate(share, {"correct": np.zeros(100)})
    Estimate(value=0.0, low=0.0, high=0.036..., rows=100)

    Args:
        metric: what is measured.
        columns: of the rows, at least one.
        replicates: draws.
        seed: of the draws.
    """
    parts = metric.parts(columns)
    value, rows = metric.value(columns), len(parts)
    if metric.share and value in (0.0, 1.0):
        # The rows beyond which seeing none, or all, of n would have a probability of 2.5%.
        reach = ((1 - CONFIDENCE) / 2) ** (1 / rows)
        low, high = (0.0, 1 - reach) if value == 0 else (reach, 1.0)
        return Estimate(value, low, high, rows)
    low, high = _interval(metric.of_sums(*_drawn_sums(parts, replicates, seed).T))
    return Estimate(value, low, high, rows)


def paired_difference(
    metric: Metric, model: Columns, other: Columns, replicates: int = REPLICATES, seed: int = SEED
) -> Difference:
    """How a model differs from another in a metric, on the same rows in the same order.

    Each draw of the bootstrap takes the same rows of both, so that what makes a row hard for both cancels. The sign
    test counts the rows on which one model's number is larger and leaves out ties: two-sided, exact under the binomial
    distribution. For shares it is McNemar's exact test. Perplexities and other exponentials are compared by their
    logarithms.

    >>> share = Metric("accuracy", "accuracy", of="correct", share=True)
    >>> one, other = np.repeat([1, 0], [60, 40]), np.repeat([1, 0], [50, 50])
    >>> found = paired_difference(share, {"correct": one}, {"correct": other})
    >>> round(found.value, 3), found.larger, found.smaller, round(found.p_value, 4)
    (0.1, 10, 0, 0.002)

    Args:
        metric: what is compared.
        model: columns of the one.
        other: columns of the other.
        replicates: draws.
        seed: of the draws.

    Raises:
        ValueError: the two do not have the same number of rows.
    """
    metric = replace(metric, exponential=False)
    one, two = metric.parts(model), metric.parts(other)
    if len(one) != len(two):
        raise ValueError(f"{metric.name}: {len(one)} rows cannot be compared with {len(two)}")
    sums = _drawn_sums(np.concatenate([one, two], axis=1), replicates, seed)
    low, high = _interval(metric.of_sums(*sums[:, :2].T) - metric.of_sums(*sums[:, 2:].T))
    gaps = metric.by_row(model) - metric.by_row(other)
    larger, smaller = int(np.sum(gaps > 0)), int(np.sum(gaps < 0))
    value = metric.value(model) - metric.value(other)
    return Difference(value, low, high, larger, smaller, _sign_test(larger, smaller))


def _drawn_sums(
    parts: Float[np.ndarray, "rows parts"], replicates: int, seed: int
) -> Float[np.ndarray, "replicates parts"]:
    """Sums over rows drawn with replacement; the same rows for the same seed and number of rows."""
    rng, rows = np.random.default_rng(seed), len(parts)
    at_once = max(1, _DRAWN_AT_ONCE // rows)
    sums = []
    for start in range(0, replicates, at_once):
        count = min(at_once, replicates - start)
        drawn = rng.integers(rows, size=(count, rows)) + np.arange(count)[:, None] * rows
        times = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
        sums.append(times @ parts)
    return np.concatenate(sums)


def _interval(values: Float[np.ndarray, " replicates"]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _sign_test(larger: int, smaller: int) -> float:
    if larger == smaller:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(larger, smaller), larger + smaller, 0.5)))
