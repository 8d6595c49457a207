"""What tokens are drawn from, beside plain sorting and beside counted draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from models.distribution import Filters, draw, filtered

VOCABULARY = 11
SCORES = np.random.default_rng(0).normal(size=(6, VOCABULARY)).astype(np.float32) * 2
CASES = {
    "temperature": (1.7, None, None),
    "top-k": (0.8, 4, None),
    "top-p": (1.0, None, 0.8),
    "top-k, then top-p": (1.3, 5, 0.9),
    "one token": (1.0, 1, None),
    "the first token alone": (1.0, None, 1e-6),
    "more than there are": (1.0, 40, None),
}
draws = jax.jit(draw)


def filters(temperature, top_k, top_p) -> Filters:
    return Filters(
        jnp.float32(temperature),
        None if top_k is None else jnp.int32(top_k),
        None if top_p is None else jnp.float32(top_p),
    )


def by_sorting(scores: np.ndarray, temperature, top_k, top_p) -> np.ndarray:
    """The probabilities of one row, in float64."""
    exponentials = np.exp(scores.astype(float) / temperature)
    order = np.argsort(-exponentials)
    kept = order[:top_k]
    shares = exponentials[kept] / exponentials[kept].sum()
    if top_p is not None:
        kept = kept[: np.searchsorted(np.cumsum(shares), top_p) + 1]
    found = np.zeros(len(scores))
    found[kept] = exponentials[kept] / exponentials[kept].sum()
    return found


@pytest.mark.parametrize("case", CASES)
def test_filtered_scores_are_those_that_sorting_keeps(case: str) -> None:
    kept = jax.jit(filtered)(jnp.asarray(SCORES), filters(*CASES[case]))
    expected = [by_sorting(row, *CASES[case]) for row in SCORES]
    np.testing.assert_allclose(jax.nn.softmax(kept, axis=-1), expected, atol=1e-6)


def test_equal_tokens_are_kept_together() -> None:
    scores = jnp.asarray([[2.0, 1.0, 1.0, 1.0, -3.0], [-1.0, -1.0, -1.0, -1.0, -1.0]])
    for chosen in (filters(1.0, 2, None), filters(1.0, None, 0.6)):
        kept = np.isfinite(jax.jit(filtered)(scores, chosen))
        np.testing.assert_array_equal(kept, [[True] * 4 + [False], [True] * 5])


@pytest.mark.parametrize("case", ["temperature", "top-k", "top-p", "top-k, then top-p"])
def test_draws_are_as_frequent_as_they_are_probable(case: str) -> None:
    count, row = 20_000, SCORES[0]
    keys = jax.random.split(jax.random.key(3), count)
    drawn = draws(jnp.broadcast_to(row, (count, VOCABULARY)), keys, filters(*CASES[case]))
    expected = by_sorting(row, *CASES[case])
    found = np.bincount(drawn.token, minlength=VOCABULARY)
    assert found[expected == 0].sum() == 0
    assert chisquare(found[expected > 0], count * expected[expected > 0]).pvalue > 1e-3
    np.testing.assert_allclose(drawn.behaviour, np.log(expected[drawn.token]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        drawn.policy, np.log(by_sorting(row, 1.0, None, None)[drawn.token]), rtol=1e-5, atol=1e-5
    )


def test_a_row_is_drawn_by_its_own_key() -> None:
    keys = jax.random.split(jax.random.key(0), len(SCORES))
    together = draws(jnp.asarray(SCORES), keys, filters(3.0, None, None)).token
    backwards = draws(jnp.asarray(SCORES[::-1]), keys[::-1], filters(3.0, None, None)).token
    np.testing.assert_array_equal(together, backwards[::-1])
    alone = draws(jnp.asarray(SCORES[2:3]), keys[2:3], filters(3.0, None, None)).token
    assert alone[0] == together[2]


def test_the_argmax_is_drawn_with_certainty() -> None:
    drawn = draws(jnp.asarray(SCORES), jax.random.split(jax.random.key(0), len(SCORES)), Filters())
    np.testing.assert_array_equal(drawn.token, np.argmax(SCORES, axis=1))
    np.testing.assert_array_equal(drawn.behaviour, np.zeros(len(SCORES)))
    assert np.all(drawn.policy < 0)
