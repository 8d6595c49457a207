import chex
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.core import Mean, RowLosses
from bilevel.core.accumulate import mean_value_and_gradient, over_micro_batches

LOSSES = RowLosses(jnp.array([6.0, 4.0, 0.0]), jnp.array([3.0, 1.0, 0.0]))  # the last row is filler


@pytest.mark.parametrize(
    ("reduction", "total", "count"),
    [("row", 2 * 2.0 + 0.5 * 4.0, 2), ("token", 2 * 6.0 + 0.5 * 4.0, 4), ("sum", 2 * 6.0 + 0.5 * 4.0, 2)],
)
def test_weights_multiply_contributions_and_never_the_count(reduction, total, count):
    mean = LOSSES.weighted(jnp.array([2.0, 0.5, 9.0]), reduction)
    assert (float(mean.total), float(mean.count)) == (total, count)
    assert float(mean.value) == pytest.approx(total / count)


def test_an_empty_batch_has_mean_zero():
    assert float(RowLosses(jnp.zeros(2), jnp.zeros(2)).weighted().value) == 0.0


def test_means_add_before_they_are_divided():
    assert float((Mean(jnp.array(6.0), jnp.array(3.0)) + Mean(jnp.array(4.0), jnp.array(1.0))).value) == 2.5


def test_ragged_micro_batches_give_the_full_gradient_where_means_of_means_do_not():
    tokens = np.array([16, 2, 9, 1], np.float32)
    values = np.arange(4, dtype=np.float32)

    def loss(scale, batch):
        return Mean(jnp.sum(batch["n"] * scale * batch["v"]), jnp.sum(batch["n"]))

    whole = {"n": tokens[None], "v": values[None]}
    cut = {"n": tokens[:, None], "v": values[:, None]}
    (_, (expected,)), (_, (found,)) = (
        mean_value_and_gradient(loss, (jnp.array(1.0),), b) for b in (whole, cut)
    )
    assert float(found) == pytest.approx(float(expected))
    assert np.mean(values) != pytest.approx(float(expected))


@pytest.mark.parametrize("pieces", [1, 3])
def test_outputs_keep_the_micro_batch_axis(pieces):
    batch = {"x": jnp.arange(6.0).reshape(pieces, -1)}
    total, kept = over_micro_batches(lambda b: (jnp.sum(b["x"]), 2 * b["x"]), batch)
    assert float(total) == 15.0
    chex.assert_trees_all_close(kept, 2 * batch["x"])


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-12])
def test_counts_may_be_sums_of_weights_as_small_as_they_like(scale):
    weights, values = scale * jnp.array([0.5, 0.25]), jnp.array([2.0, 4.0])

    def loss(slope, batch):
        return Mean(jnp.sum(weights * slope * values), jnp.sum(weights))

    mean, (gradient,) = mean_value_and_gradient(loss, (jnp.array(3.0),), {"none": jnp.zeros((1, 1))})
    assert float(mean.value) == pytest.approx(8.0)
    assert float(gradient) == pytest.approx(8.0 / 3)
    rows = RowLosses(scale * jnp.array([6.0, 0.0]), scale * jnp.array([3.0, 0.0]))
    np.testing.assert_allclose(rows.means, [2.0, 0.0], rtol=1e-6)
    assert float(rows.weighted(reduction="token").value) == pytest.approx(2.0)


def test_what_has_no_count_and_is_not_finite_stays_so():
    assert np.isnan(float(Mean(jnp.array(jnp.nan), 0).value))
