import numpy as np
import pytest
from scipy import stats

from bilevel.evaluation import Metric, estimate, paired_difference

SHARE = Metric("accuracy", "accuracy", "right", share=True)
MEAN = Metric("loss", "loss", "loss")
RATIO = Metric("perplexity", "perplexity", "nll", "tokens", exponential=True)


def test_values_are_means_and_ratios_of_sums() -> None:
    columns = {"loss": np.array([1.0, 4.0]), "nll": np.array([2.0, 4.0]), "tokens": np.array([1, 3])}
    assert MEAN.value(columns) == 2.5
    assert RATIO.value(columns) == pytest.approx(np.exp(6 / 4))
    assert RATIO.by_row(columns).tolist() == pytest.approx([2.0, 4 / 3])


def test_intervals_are_those_of_scipy() -> None:
    loss = np.random.default_rng(1).gamma(2.0, size=200)
    found = estimate(MEAN, {"loss": loss}, replicates=4000)
    reference = stats.bootstrap(
        (loss,), np.mean, method="percentile", n_resamples=4000, rng=5
    ).confidence_interval
    width = reference.high - reference.low
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=0.03 * width)
    assert (found.value, found.rows) == (pytest.approx(loss.mean()), 200)


def test_ratios_are_drawn_as_pairs() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, 40, size=300)
    # Every token loses as much: whatever the lengths, the perplexity is the same in each draw.
    found = estimate(RATIO, {"nll": 0.7 * tokens, "tokens": tokens})
    assert (found.low, found.value, found.high) == pytest.approx([np.exp(0.7)] * 3)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    draws = np.random.default_rng(0).random((400, 80)) < 0.3
    found = [estimate(SHARE, {"right": row.astype(float)}, replicates=400) for row in draws]
    assert np.mean([one.low <= 0.3 <= one.high for one in found]) == pytest.approx(0.945, abs=0.03)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_shares_of_nothing_and_all_have_exact_intervals(right: float) -> None:
    found = estimate(SHARE, {"right": np.full(57, right)})
    exact = stats.binomtest(int(57 * right), 57).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_paired_differences_see_what_the_intervals_of_two_models_hide() -> None:
    hardness = np.random.default_rng(3).normal(0, 5, size=100)
    one, other = {"loss": hardness + 0.2}, {"loss": hardness}
    found = paired_difference(MEAN, one, other)
    assert (found.low, found.value, found.high) == pytest.approx([0.2] * 3)
    assert (found.larger, found.smaller) == (100, 0)
    assert estimate(MEAN, one).low < estimate(MEAN, other).high
    assert paired_difference(MEAN, other, other)[:3] == (0, 0, 0)


def test_the_sign_test_is_mcnemars() -> None:
    right = np.array([[1, 0]] * 9 + [[0, 1]] * 2 + [[1, 1]] * 30 + [[0, 0]] * 5, float)
    one, other = ({"right": column} for column in right.T)
    found = paired_difference(SHARE, one, other)
    assert found.p_value == pytest.approx(stats.binomtest(9, 11).pvalue)
    assert found.value == pytest.approx(7 / 46)
    assert paired_difference(SHARE, one, one).p_value == 1


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="2 rows cannot be compared with 3"):
        paired_difference(MEAN, {"loss": np.ones(2)}, {"loss": np.ones(3)})
