"""Weight networks: uniform at the start, whatever the form of the batch; who competes with whom; what they see."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.data import pack_rows
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.weighting import (
    EncoderSettings,
    Scorer,
    added,
    loss_scorer,
    network,
    product,
    row_logits,
    signal_scorer,
)
from tests.weighting.pieces import POOL, ROWS, SCORERS, SIZES, in_pieces, losses_of, moved


@cache
def compiled(name, **options):
    weigh = network(SCORERS[name], **options).weights
    return jax.jit(lambda parameters, batch: weigh(parameters, (), batch, losses_of(batch)))


def weights_of(name, parameters, batch, **options):
    return np.asarray(compiled(name, **options)(parameters, batch))


@pytest.mark.parametrize("name", SCORERS)
def test_every_network_begins_with_weights_of_exactly_one(name):
    parameters, _ = network(SCORERS[name]).init(jax.random.key(7), SIZES)
    batch = in_pieces([0, 3, 5, -1, 2, -1, 6, 4], 1)
    weights = weights_of(name, parameters, batch, floor=0.2)
    np.testing.assert_array_equal(weights, [[1, 1, 1, 0, 1, 0, 1, 1]])


@pytest.mark.parametrize("name", SCORERS)
def test_global_weights_do_not_depend_on_micro_batches_or_on_the_order_of_rows(name):
    parameters = moved(SCORERS[name])
    whole = weights_of(name, parameters, in_pieces(range(ROWS)))[0]
    assert np.ptp(whole) > 0.1
    assert whole.mean() == pytest.approx(1.0, abs=1e-6)
    for pieces in (2, 4):
        cut = weights_of(name, parameters, in_pieces(range(ROWS), pieces))
        np.testing.assert_allclose(cut.reshape(-1), whole, rtol=2e-5)
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    np.testing.assert_allclose(weights_of(name, parameters, in_pieces(order))[0], whole[order], rtol=2e-5)
    np.testing.assert_allclose(weights_of(name, parameters, POOL.batch(np.arange(ROWS))), whole, rtol=2e-5)


@pytest.mark.parametrize("name", ["encoder", "across rows"])
def test_packed_rows_and_devices_give_the_weights_of_padded_rows_on_one_device(name):
    parameters = moved(SCORERS[name])
    ids = np.array([4, 1, -1, 0, 7, 2, 3, 5])
    whole = weights_of(name, parameters, in_pieces(ids))
    packed = jax.tree.map(lambda x: x[None], pack_rows(POOL, [ids], length=16).batch(ids))
    np.testing.assert_allclose(weights_of(name, parameters, packed), whole, rtol=2e-5, atol=1e-7)
    batch = data_layout(jax.devices()[:4]).split(in_pieces(ids), axis=1)
    np.testing.assert_allclose(weights_of(name, parameters, batch), whole, rtol=2e-5, atol=1e-7)


def test_rows_of_one_sequence_do_not_see_each_other():
    """Without attention across rows, a row's score is its own: shares of two rows keep their ratio in any company."""
    name, parameters = "encoder", moved(SCORERS["encoder"])
    first = weights_of(name, parameters, in_pieces([0, 1, 2, 3]))[0]
    second = weights_of(name, parameters, in_pieces([0, 1, 6, 7]))[0]
    assert first[0] / first[1] == pytest.approx(second[0] / second[1], rel=1e-4)
    joint, parameters = "across rows", moved(SCORERS["across rows"])
    first = weights_of(joint, parameters, in_pieces([0, 1, 2, 3]))[0]
    second = weights_of(joint, parameters, in_pieces([0, 1, 6, 7]))[0]
    assert abs(np.log(first[0] / first[1] * second[1] / second[0])) > 1e-3


def test_the_encoder_knows_the_response_from_the_prompt():
    name, parameters = "encoder", moved(SCORERS["encoder"])
    batch = in_pieces(range(ROWS))
    other = batch | {"loss_mask": jnp.roll(batch["loss_mask"], -1, axis=-1) & (batch["segments"] > 0)}
    scores = jax.jit(lambda batch: SCORERS[name].scores(parameters, batch, None))
    before, after = scores(batch), scores(other)
    assert np.abs(np.asarray(before - after)).max() > 1e-2


def test_scopes_say_who_competes():
    name, parameters = "loss", moved(SCORERS["loss"])
    batch = in_pieces([0, 1, -1, 3, 4, 5, 6, 7], 2)
    micro = weights_of(name, parameters, batch, scope="micro")
    np.testing.assert_allclose(micro.sum(axis=1), [3, 4], rtol=1e-6)
    device = weights_of(name, parameters, batch, scope="device", devices=2)
    np.testing.assert_allclose(device[:, :2].sum(), 4, rtol=1e-6)
    np.testing.assert_allclose(device[:, 2:].sum(), 3, rtol=1e-6)
    whole = weights_of(name, parameters, batch)
    assert whole.sum() == pytest.approx(7)
    assert not np.allclose(whole, micro)
    with pytest.raises(ValueError, match="cannot share"):
        weights_of(name, parameters, batch, scope="device", devices=3)


def test_a_scope_of_filler_rows_alone_weighs_nothing():
    batch = in_pieces([0, 1, -1, -1], 2)
    weights = weights_of("loss", moved(SCORERS["loss"]), batch, scope="micro")
    np.testing.assert_array_equal(weights[1], [0, 0])
    assert weights[0].sum() == pytest.approx(2)


def test_floor_and_temperature():
    name, parameters = "loss", moved(SCORERS["loss"])
    batch = in_pieces(range(ROWS))
    plain, flat = (
        weights_of(name, parameters, batch),
        weights_of(name, parameters, batch, temperature=4.0),
    )
    floored = weights_of(name, parameters, batch, floor=0.25)
    np.testing.assert_allclose(floored, 0.25 + 0.75 * plain, rtol=1e-6)
    assert np.ptp(flat) < np.ptp(plain)


@pytest.mark.parametrize("name", SCORERS)
def test_derivatives_in_the_scores_sum_to_zero(name):
    """A shift of all scores is a null direction, and the baseline is the weighted mean (softmax's Jacobian)."""
    alignment = np.random.default_rng(1).normal(size=ROWS)
    shifted = Scorer(lambda key: jnp.zeros(ROWS), lambda s, batch, losses: s[batch["row_id"]])
    scores = 0.7 * np.random.default_rng(2).normal(size=ROWS)
    batch = in_pieces(range(ROWS), 2)
    weighting = network(shifted, temperature=0.5)

    def total(scores):
        return jnp.sum(weighting.weights(scores, (), batch, None).reshape(-1) * alignment)

    found = jax.jit(jax.grad(total))(jnp.asarray(scores, jnp.float32))
    weights = np.asarray(weighting.weights(jnp.asarray(scores), (), batch, None)).reshape(-1)
    expected = weights / 0.5 * (alignment - np.sum(weights * alignment) / ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert abs(float(jnp.sum(found))) < 1e-5


def test_scorers_that_read_losses_in_two_forms_do_not_add():
    with pytest.raises(ValueError, match="in one form"):
        added(loss_scorer("absolute"), loss_scorer("relative"))


def test_sigmoid_shares_are_bounded_and_do_not_feel_a_shift():
    free = Scorer(lambda key: jnp.zeros(ROWS), lambda s, batch, losses: s[batch["row_id"]])
    batch = in_pieces(range(ROWS))
    scores = jnp.asarray([9.0, 6.0, 7.0, 8.0, 6.5, -9.0, -8.0, -7.0])
    weights = np.asarray(network(free, "sigmoid").weights(scores, (), batch, None))[0]
    np.testing.assert_allclose(weights[:5], ROWS / 5, rtol=0.01)
    shifted = np.asarray(network(free, "sigmoid").weights(scores - 30.0, (), batch, None))[0]
    np.testing.assert_allclose(shifted, weights, rtol=1e-4, atol=1e-6)


def test_signals_are_standardised_and_missing_ones_stand_at_the_mean():
    table = jnp.array([[1.0, 5.0], [3.0, 5.0], [jnp.nan, 5.0]])
    scorer = signal_scorer(table)
    scores = scorer.scores(jnp.array([2.0, 9.0]), {"row_id": jnp.array([[0, 1, 2, -1]])}, None)
    np.testing.assert_allclose(scores[0, :3], [-2.0, 2.0, 0.0], atol=1e-6)


def test_products_with_row_logits():
    weighting = product(network=network(SCORERS["sum"]), rows=row_logits())
    assert weighting.needs_losses
    outer, memory = weighting.init(jax.random.key(0), SIZES)
    outer["network"], outer["rows"] = moved(SCORERS["sum"]), jnp.linspace(-1, 1, ROWS)
    batch = in_pieces(range(ROWS))
    alone = weights_of("sum", outer["network"], batch)
    factor = ROWS * jax.nn.softmax(outer["rows"])
    found = weighting.weights(outer, memory, batch, losses_of(batch))
    np.testing.assert_allclose(found, alone * factor, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, not 0.0"),
        ({"floor": 1.0}, r"floor must be in \[0, 1\), not 1.0"),
        ({"floor": -0.1}, "floor must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(SCORERS["loss"], **options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 10, "heads": 4}, "multiple of 8"),
        ({"layers": 0}, "layers 0"),
        ({"across_rows": -1}, "negative"),
    ],
)
def test_bad_sizes_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        EncoderSettings(**sizes)


def test_no_scorer_is_no_sum():
    with pytest.raises(ValueError, match="at least one"):
        added()
