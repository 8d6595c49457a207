"""What moves a weight network: the derivative as it is, relative to losses, or as what scores regress on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.core import RowLosses
from bilevel.weighting import (
    Scorer,
    loss_scorer,
    network,
    signal_scorer,
)
from bilevel.weighting.network_signals import relative_losses
from tests.weighting.pieces import ROWS, in_pieces, losses_of, moved


def test_regression_pulls_scores_to_the_standardised_worth_of_rows():
    free = Scorer(lambda key: jnp.zeros(ROWS), lambda s, batch, losses: s[batch["row_id"]])
    weighting = network(free, "sigmoid", "regression", temperature=0.3)
    assert weighting.needs_losses
    batch = in_pieces([0, 1, 2, -1, 4, 5, 6, 7], 2)
    ids = np.array([0, 1, 2, 4, 5, 6, 7])
    losses = losses_of(batch)
    rng = np.random.default_rng(4)
    alignment, scores = rng.normal(size=(2, ROWS)).astype(np.float32)

    def total(scores):
        weights = weighting.weights(scores, (), batch, losses)
        return jnp.sum(weights * alignment[batch["row_id"]])

    worth = -alignment[ids] / (0.5 * ids + 0.02)
    targets = np.clip((worth - worth.mean()) / worth.std(), -1, 1)
    expected = np.zeros(ROWS)
    expected[ids] = (scores[ids] - scores[ids].mean() - targets) / len(ids)
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(scores)), expected, rtol=1e-3, atol=1e-5)
    exact = network(free, "sigmoid", temperature=0.3)
    scores = jnp.asarray(scores)
    np.testing.assert_array_equal(
        weighting.weights(scores, (), batch, losses), exact.weights(scores, (), batch, losses)
    )


@pytest.mark.parametrize("scope", ["global", "micro"])
def test_relative_losses_are_deviations_from_the_rows_that_a_row_competes_with(scope):
    scorer = loss_scorer("relative", 6)
    weighting = network(scorer, scope=scope)
    parameters, batch = moved(scorer), in_pieces([0, 1, 2, -1, 4, 5, 6, 7], 2)
    losses = losses_of(batch)

    def weights(scale, shift):
        changed = RowLosses(scale * losses.total + shift * losses.count, losses.count)
        return weighting.weights(parameters, (), batch, changed)

    plain = weights(1.0, 0.0)
    assert np.ptp(plain[batch["row_id"] >= 0]) > 0.1
    np.testing.assert_allclose(weights(3.0, 2.0), plain, rtol=1e-4)
    # What filler rows hold says nothing.
    filled = jnp.where(batch["row_id"] < 0, 9.0, losses.total)
    np.testing.assert_allclose(
        weighting.weights(parameters, (), batch, RowLosses(filled, losses.count)), plain, rtol=1e-6
    )
    # Another level of losses in one micro-batch is felt where rows compete across micro-batches alone.
    moved_piece = RowLosses(losses.total.at[1].add(5.0 * losses.count[1]), losses.count)
    same = np.allclose(weighting.weights(parameters, (), batch, moved_piece), plain, rtol=1e-3)
    assert same == (scope == "micro")


def test_a_loss_far_from_all_others_counts_as_three_deviations():
    losses = jnp.zeros((1, 200)).at[0, 7].set(50.0)
    found = relative_losses(losses, jnp.ones((1, 200), bool))
    assert float(found[0, 7]) == 3.0
    np.testing.assert_allclose(np.delete(np.asarray(found[0]), 7), -(199**-0.5), rtol=1e-4)


@pytest.mark.parametrize("level", [1e-9, 0.1, 1e6])
def test_losses_that_are_all_the_same_do_not_deviate(level):
    real = jnp.arange(4000)[None] < 3999
    same = jnp.full((1, 4000), level)
    np.testing.assert_array_equal(relative_losses(same, real), 0.0)
    apart = relative_losses(same.at[0, :2000].multiply(1.01), real)
    np.testing.assert_allclose(np.abs(apart[real]), 1.0, rtol=2e-3)


def test_a_column_of_one_value_says_nothing():
    columns = jnp.stack([jnp.full(3000, 0.1), jnp.arange(3000.0)], axis=1)
    scorer = signal_scorer(columns)
    batch = {"row_id": jnp.arange(3000)[None]}
    np.testing.assert_array_equal(scorer.scores(jnp.array([1.0, 0.0]), batch, None), 0.0)
    assert float(jnp.std(scorer.scores(jnp.array([0.0, 1.0]), batch, None))) == pytest.approx(1.0, rel=1e-4)
