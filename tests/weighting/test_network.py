"""Weight networks: uniform at the start, whatever the form of the batch; who competes with whom; what they see."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.core import RowLosses
from bilevel.data import EncodedRows, Row, pack_rows
from bilevel.errors import InputError
from bilevel.layout.devices import data_mesh, place_batch
from bilevel.weighting import (
    EncoderSettings,
    Scorer,
    added,
    encoder,
    loss_scorer,
    network,
    product,
    row_logits,
    signal_scorer,
)
from bilevel.weighting.network import relative_losses

VOCABULARY, ROWS, LENGTH = 11, 8, 8
SMALL = EncoderSettings(width=8, layers=1, heads=2, mlp_width=8)
SIGNALS = jnp.asarray(np.random.default_rng(3).normal(size=(ROWS, 3)))


def encoded() -> EncodedRows:
    """Rows of 3 to 8 tokens, the last two of each its response."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, LENGTH + 1, size=ROWS)
    places = np.arange(LENGTH)[None]
    real = places < lengths[:, None]
    rows = tuple(Row(f"row:{i}", "", "", "") for i in range(ROWS))
    tokens = np.where(real, rng.integers(1, VOCABULARY, (ROWS, LENGTH)), 0).astype(np.int32)
    return EncodedRows(rows, tokens, real.astype(np.int32), real & (places >= lengths[:, None] - 2))


POOL = encoded()
SCORERS = {
    "encoder": encoder(VOCABULARY, SMALL),
    "across rows": encoder(VOCABULARY, replace(SMALL, across_rows=1)),
    "loss": loss_scorer(hidden=6),
    "relative loss": loss_scorer("relative", 6),
    "signals": signal_scorer(SIGNALS),
    "sum": added(encoder(VOCABULARY, SMALL), loss_scorer("relative", 6)),
}


def in_pieces(ids, pieces: int = 1) -> dict:
    batch = POOL.batch(np.asarray(ids))
    return {name: jnp.reshape(value, (pieces, -1, *value.shape[1:])) for name, value in batch.items()}


def losses_of(batch) -> RowLosses:
    ids = batch["row_id"]
    return RowLosses(jnp.where(ids >= 0, 1.0 * ids, 0.0), jnp.where(ids >= 0, 2.0, 0.0))


def moved(scorer: Scorer):
    """Parameters away from the uniform start."""
    start = scorer.init(jax.random.key(0))
    leaves, structure = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten(
        [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def weights_of(scorer, parameters, batch, **options):
    return np.asarray(network(scorer, **options).weights(parameters, (), batch, losses_of(batch)))


@pytest.mark.parametrize("name", SCORERS)
def test_every_network_begins_with_weights_of_exactly_one(name):
    scorer = SCORERS[name]
    parameters, memory = network(scorer).init(jax.random.key(7))
    batch = in_pieces([0, 3, 5, -1, 2, -1, 6], 1)
    np.testing.assert_array_equal(
        network(scorer, floor=0.2).weights(parameters, memory, batch, losses_of(batch)),
        [[1, 1, 1, 0, 1, 0, 1]],
    )


@pytest.mark.parametrize("name", SCORERS)
def test_global_weights_do_not_depend_on_micro_batches_or_on_the_order_of_rows(name):
    scorer, parameters = SCORERS[name], moved(SCORERS[name])
    whole = weights_of(scorer, parameters, in_pieces(range(ROWS)))[0]
    assert np.ptp(whole) > 0.1
    assert whole.mean() == pytest.approx(1.0, abs=1e-6)
    for pieces in (2, 4):
        cut = weights_of(scorer, parameters, in_pieces(range(ROWS), pieces))
        np.testing.assert_allclose(cut.reshape(-1), whole, rtol=2e-5)
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    np.testing.assert_allclose(weights_of(scorer, parameters, in_pieces(order))[0], whole[order], rtol=2e-5)
    np.testing.assert_allclose(
        network(scorer).weights(parameters, (), POOL.batch(range(ROWS)), losses_of(POOL.batch(range(ROWS)))),
        whole,
        rtol=2e-5,
    )


@pytest.mark.parametrize("name", ["encoder", "across rows"])
def test_packed_rows_and_devices_give_the_weights_of_padded_rows_on_one_device(name):
    scorer, parameters = SCORERS[name], moved(SCORERS[name])
    ids = np.array([4, 1, -1, 0, 7, 2, 3, 5])
    whole = weights_of(scorer, parameters, in_pieces(ids))
    packed = jax.tree.map(lambda x: x[None], pack_rows(POOL, [ids], length=16).batch(ids))
    np.testing.assert_allclose(weights_of(scorer, parameters, packed), whole, rtol=2e-5, atol=1e-7)
    batch = place_batch(in_pieces(ids), data_mesh(jax.devices()[:4]), axis=1)
    weigh = jax.jit(lambda batch: network(scorer).weights(parameters, (), batch, None))
    np.testing.assert_allclose(weigh(batch), whole, rtol=2e-5, atol=1e-7)


def test_rows_of_one_sequence_do_not_see_each_other():
    """Without attention across rows, a row's score is its own: shares of two rows keep their ratio in any company."""
    scorer, parameters = SCORERS["encoder"], moved(SCORERS["encoder"])
    first = weights_of(scorer, parameters, in_pieces([0, 1, 2, 3]))[0]
    second = weights_of(scorer, parameters, in_pieces([0, 1, 6, 7]))[0]
    assert first[0] / first[1] == pytest.approx(second[0] / second[1], rel=1e-4)
    joint, parameters = SCORERS["across rows"], moved(SCORERS["across rows"])
    first = weights_of(joint, parameters, in_pieces([0, 1, 2, 3]))[0]
    second = weights_of(joint, parameters, in_pieces([0, 1, 6, 7]))[0]
    assert abs(np.log(first[0] / first[1] * second[1] / second[0])) > 1e-3


def test_the_encoder_knows_the_response_from_the_prompt():
    scorer, parameters = SCORERS["encoder"], moved(SCORERS["encoder"])
    batch = in_pieces(range(ROWS))
    other = batch | {"loss_mask": jnp.roll(batch["loss_mask"], -1, axis=-1) & (batch["segments"] > 0)}
    before, after = (scorer.scores(parameters, b, None) for b in (batch, other))
    assert np.abs(np.asarray(before - after)).max() > 1e-2


def test_scopes_say_who_competes():
    scorer, parameters = SCORERS["loss"], moved(SCORERS["loss"])
    batch = in_pieces([0, 1, -1, 3, 4, 5, 6, 7], 2)
    micro = weights_of(scorer, parameters, batch, scope="micro")
    np.testing.assert_allclose(micro.sum(axis=1), [3, 4], rtol=1e-6)
    device = weights_of(scorer, parameters, batch, scope="device", devices=2)
    np.testing.assert_allclose(device[:, :2].sum(), 4, rtol=1e-6)
    np.testing.assert_allclose(device[:, 2:].sum(), 3, rtol=1e-6)
    whole = weights_of(scorer, parameters, batch)
    assert whole.sum() == pytest.approx(7)
    assert not np.allclose(whole, micro)
    with pytest.raises(ValueError, match="cannot share"):
        weights_of(scorer, parameters, batch, scope="device", devices=3)


def test_a_scope_of_filler_rows_alone_weighs_nothing():
    batch = in_pieces([0, 1, -1, -1], 2)
    weights = weights_of(SCORERS["loss"], moved(SCORERS["loss"]), batch, scope="micro")
    np.testing.assert_array_equal(weights[1], [0, 0])
    assert weights[0].sum() == pytest.approx(2)


def test_floor_and_temperature():
    scorer, parameters = SCORERS["loss"], moved(SCORERS["loss"])
    batch = in_pieces(range(ROWS))
    plain, flat = (
        weights_of(scorer, parameters, batch),
        weights_of(scorer, parameters, batch, temperature=4.0),
    )
    floored = weights_of(scorer, parameters, batch, floor=0.25)
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

    found = jax.grad(total)(jnp.asarray(scores, jnp.float32))
    weights = np.asarray(weighting.weights(jnp.asarray(scores), (), batch, None)).reshape(-1)
    expected = weights / 0.5 * (alignment - np.sum(weights * alignment) / ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert abs(float(jnp.sum(found))) < 1e-5


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
    weighting = product(network=network(SCORERS["sum"]), rows=row_logits(ROWS))
    assert weighting.needs_losses
    outer, memory = weighting.init(jax.random.key(0))
    outer["network"], outer["rows"] = moved(SCORERS["sum"]), jnp.linspace(-1, 1, ROWS)
    batch = in_pieces(range(ROWS))
    alone = weights_of(SCORERS["sum"], outer["network"], batch)
    factor = ROWS * jax.nn.softmax(outer["rows"])
    found = weighting.weights(outer, memory, batch, losses_of(batch))
    np.testing.assert_allclose(found, alone * factor, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"floor": 1.0}, r"floor 1.0 is outside \[0, 1\)"),
        ({"floor": -0.1}, "floor -0.1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
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
