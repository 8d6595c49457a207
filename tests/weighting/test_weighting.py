import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import RowLosses
from bilevel.weighting import (
    effective_sample_size,
    entropy_penalty,
    exponentiated_gradient,
    given,
    heaviest_share,
    loss_scorer,
    network,
    pool_weights,
    product,
    row_logits,
    separation_auc,
    signal_scorer,
    uniform,
    visited_sgd,
)

BATCH = {"row_id": jnp.array([[0, 3], [2, -1]])}
SIZES = {"row_id": 4}
LOGITS = jnp.array([0.3, -1.0, 0.7, 2.0])


def test_softmax_weights_have_mean_one_over_the_pool_and_start_uniform():
    weighting = row_logits()
    start, memory = weighting.init(jax.random.key(0), SIZES)
    np.testing.assert_allclose(weighting.weights(start, memory, BATCH, None), [[1, 1], [1, 0]])
    assert float(jnp.mean(pool_weights(LOGITS))) == pytest.approx(1.0)
    expected = 4 * np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(
        weighting.weights(LOGITS, (), BATCH, None), [[expected[0], expected[3]], [expected[2], 0]], rtol=1e-6
    )


def test_sigmoid_weights_do_not_see_each_other():
    weights = row_logits("sigmoid").weights(LOGITS, (), BATCH, None)
    np.testing.assert_allclose(weights[0], 2 / (1 + np.exp(-LOGITS[jnp.array([0, 3])])), rtol=1e-6)


def test_the_floor_is_the_smallest_weight():
    weights = pool_weights(jnp.array([0.0, -80.0]), floor=0.1)
    np.testing.assert_allclose(weights, [0.1 + 0.9 * 2, 0.1], rtol=1e-6)


def test_the_gate_shuts_rows_out_by_rank_in_the_pool_and_lets_them_come_back():
    weighting = row_logits(keep_share=0.5)

    def total(logits):
        return jnp.sum(weighting.weights(logits, (), {"row_id": jnp.arange(4)}, None) * jnp.arange(1.0, 5.0))

    weights = weighting.weights(LOGITS, (), {"row_id": jnp.arange(4)}, None)
    assert (np.asarray(weights) > 0).tolist() == [False, False, True, True]
    ungated = jax.grad(lambda logits: jnp.sum(pool_weights(logits) * jnp.arange(1.0, 5.0)))(LOGITS)
    np.testing.assert_allclose(jax.grad(total)(LOGITS), ungated, rtol=1e-6)


def test_products_multiply_and_keep_their_parts_apart():
    weighting = product(rows=row_logits(), table=given(jnp.array([1.0, 2.0, 3.0, 4.0])), all=uniform())
    outer, memory = weighting.init(jax.random.key(0), SIZES)
    assert set(outer) == {"rows", "table", "all"}
    np.testing.assert_allclose(weighting.weights(outer, memory, BATCH, None), [[1, 4], [3, 0]])
    optimizer = optax.multi_transform(
        {"rows": exponentiated_gradient(0.5), "none": optax.set_to_zero()},
        {"rows": "rows", "table": "none", "all": "none"},
    )
    gradient = {"rows": jnp.array([0.1, 0.0, 0.0, -0.1]), "table": (), "all": ()}
    updates, _ = optimizer.update(gradient, optimizer.init(outer), outer, batch={"row_id": jnp.array([0, 3])})
    assert np.asarray(updates["rows"])[0] < 0 < np.asarray(updates["rows"])[3]
    with pytest.raises(ValueError, match="at least one"):
        product()


def signal_gradient(signal):
    """The gradient in the logits of mean_i w_i signal_i over a batch, as the table's softmax gives it."""
    ids = jnp.array([0, 2, 3])
    return jax.grad(lambda logits: jnp.mean(pool_weights(logits)[ids] * signal))(LOGITS), ids


def test_exponentiated_gradient_multiplies_weights_by_centred_signals():
    signal = jnp.array([0.5, -0.25, 2.0])
    gradient, ids = signal_gradient(signal)
    rule = exponentiated_gradient(0.3)
    update, _ = rule.update(gradient, rule.init(LOGITS), LOGITS, batch={"row_id": ids})
    np.testing.assert_allclose(update[ids], -0.3 * (signal - jnp.mean(signal)), rtol=1e-4, atol=1e-6)
    assert float(update[1]) == 0.0


def test_visited_sgd_moves_visited_rows_by_centred_gradients():
    signal = jnp.array([0.5, -0.25, 2.0])
    gradient, ids = signal_gradient(signal)
    rule = visited_sgd(0.3)
    update, _ = rule.update(gradient, rule.init(LOGITS), LOGITS, batch={"row_id": jnp.append(ids, -1)})
    expected = -0.3 * 3 * (gradient[ids] - jnp.mean(gradient[ids]))
    np.testing.assert_allclose(update[ids], expected, rtol=1e-5)
    assert float(update[1]) == 0.0


@pytest.mark.parametrize(
    "rule", [exponentiated_gradient(0.3), visited_sgd(0.3)], ids=["exponentiated", "sgd"]
)
def test_row_updates_forget_how_often_a_row_was_visited(rule):
    """Equal signals move nothing, however unequal the visits; Adam's logits would count them."""
    logits, adam_logits = jnp.zeros(4), jnp.zeros(4)
    adam = optax.adam(0.01)
    moments = adam.init(logits)
    rng = np.random.default_rng(0)
    visits = np.zeros(4)

    @jax.jit
    def step(logits, adam_logits, moments, ids):
        gradient = jax.grad(lambda z: jnp.mean(pool_weights(z)[ids]))
        update, _ = rule.update(gradient(logits), rule.init(logits), logits, batch={"row_id": ids})
        by_adam, moments = adam.update(gradient(adam_logits), moments)
        return logits + update, adam_logits + by_adam, moments

    for _ in range(200):
        ids = rng.choice(4, size=2, replace=False, p=[0.4, 0.3, 0.2, 0.1])
        visits[ids] += 1
        logits, adam_logits, moments = step(logits, adam_logits, moments, ids)
    np.testing.assert_allclose(logits, 0.0, atol=1e-4)
    assert np.ptp(np.asarray(adam_logits)) > 0.05
    assert np.corrcoef(visits, adam_logits)[0, 1] < -0.9


@pytest.mark.parametrize("depth", [60.0, 75.0, 80.5, 85.0, 95.0, 200.0])
def test_weights_too_small_for_a_float_neither_explode_nor_get_lost(depth):
    logits = LOGITS.at[1].set(-depth)
    ids = jnp.arange(4)
    gradient = jax.grad(lambda z: jnp.mean(pool_weights(z)[ids] * jnp.array([0.5, 30.0, 0.1, 0.2])))(logits)
    rule = exponentiated_gradient(0.5)
    update, _ = rule.update(gradient, rule.init(logits), logits, batch={"row_id": ids})
    assert float(jnp.abs(update).max()) < 0.5 * 30.0
    assert float(update[1]) > 0  # below the smallest weight the way is up


@pytest.mark.parametrize("factory", [exponentiated_gradient, visited_sgd])
def test_rates_must_be_positive(factory):
    with pytest.raises(ValueError, match="positive"):
        factory(0.0)


def test_the_entropy_term_has_the_softmax_of_losses_as_its_minimiser():
    """min over the simplex of sum s_i l_i + tau sum s_i log s_i = softmax(-l / tau) (Danskin's soft-min)."""
    losses, tau = jnp.array([0.2, 1.0, 0.5, 2.0]), 0.7
    penalty = entropy_penalty(tau, row_logits())
    everything = {"row_id": jnp.arange(4)}

    def objective(logits):
        return jnp.mean(pool_weights(logits) * losses) + penalty(logits, (), everything, None)

    best = -losses / tau
    np.testing.assert_allclose(jax.grad(objective)(best), 0.0, atol=1e-6)
    assert float(objective(best)) < float(objective(best + jnp.array([0.3, 0.0, -0.2, 0.0])))
    expected = -tau * jax.nn.logsumexp(-losses / tau) + tau * jnp.log(4)  # weights are 4 times the simplex's
    assert float(objective(best)) == pytest.approx(float(expected), rel=1e-5)


def test_the_entropy_term_is_finite_at_zero_weights():
    penalty = entropy_penalty(1.0, row_logits())
    gradient = jax.grad(penalty)(jnp.array([0.0, -200.0, 1.0]), (), {"row_id": jnp.array([0, 1, -1])}, None)
    assert np.all(np.isfinite(gradient))


def test_effective_sample_size_counts_equal_weights():
    assert float(effective_sample_size(jnp.array([2.0, 2.0, 0.0, 0.0]))) == pytest.approx(2.0)
    assert float(effective_sample_size(np.ones(5))) == pytest.approx(5.0)
    for scale in (1e-30, 1e30):  # whose squares are no floats
        assert float(effective_sample_size(scale * np.array([1.0, 1.0, 2.0]))) == pytest.approx(16 / 6)
    assert float(effective_sample_size(np.zeros(3))) == 0.0


def test_separation_auc_is_a_probability_with_ties_counted_half():
    low, high = np.array([0.1, 0.5, 0.5]), np.array([0.5, 0.9])
    pairs = [(h > x) + 0.5 * (h == x) for h in high for x in low]
    assert separation_auc(low, high) == pytest.approx(np.mean(pairs))
    assert separation_auc(np.array([]), high) is None


def test_heaviest_share_counts_whole_rows():
    weights = np.array([1.0, 4.0, 0.0, 5.0])
    assert heaviest_share(weights, 0.25) == 0.5
    assert heaviest_share(weights, 0.3) == 0.9
    assert heaviest_share(np.ones(10), 0.1) == pytest.approx(0.1)
    assert heaviest_share(weights, 1.0) == 1.0
    assert heaviest_share(np.zeros(3), 0.5) is None


@pytest.mark.parametrize("factory", [exponentiated_gradient, visited_sgd])
def test_a_question_with_several_answers_moves_as_far_as_one_with_a_single_answer(factory):
    rule = factory(0.3, by="question_id")
    signal = jnp.array([0.5, -0.25, 2.0])

    def moved(answers):
        questions = jnp.repeat(jnp.array([0, 2, 3]), answers)
        batch = {"row_id": jnp.arange(questions.size), "question_id": questions}
        weigh = row_logits(by="question_id").weights

        def lower(logits):
            return jnp.mean(weigh(logits, (), batch, None) * jnp.repeat(signal, answers))

        return rule.update(jax.grad(lower)(LOGITS), rule.init(LOGITS), LOGITS, batch=batch)[0]

    np.testing.assert_allclose(moved(4), moved(1), rtol=1e-5)
    assert float(jnp.abs(moved(1)).max()) > 0.01


def test_filler_rows_have_no_question():
    batch = {"row_id": jnp.array([0, -1]), "question_id": jnp.array([1, 0])}
    np.testing.assert_allclose(row_logits(by="question_id").weights(LOGITS, (), batch, None)[1], 0.0)
    rule = visited_sgd(0.3, by="question_id")
    update, _ = rule.update(LOGITS, rule.init(LOGITS), LOGITS, batch=batch)
    assert float(update[0]) == 0.0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({}, "sizes={'row_id': ...}"), ({"row_id": 0}, "at least one"), ({"row_id": 5}, "")],
)
def test_tables_take_their_size_from_the_rows_or_must_fit_them(sizes, message):
    for weighting in (row_logits(), given(jnp.ones(4)), network(signal_scorer(jnp.ones((4, 2))))):
        fits = message == "" and weighting.tables[0] == "row_id"
        if fits:
            assert weighting.init(jax.random.key(0), sizes)[0].shape == (5,)
            continue
        with pytest.raises(ValueError, match=message or "a table of 4 does not fit the 5"):
            weighting.init(jax.random.key(0), sizes)


def test_the_entropy_term_of_weights_that_read_losses_reads_them_too():
    weighting = network(loss_scorer("relative", 3))
    outer, _ = weighting.init(jax.random.key(0), SIZES)
    outer["head"] = jnp.array([0.5, -1.0, 1.5])
    losses = RowLosses(jnp.array([[0.5, 2.0], [1.0, 0.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]]))
    weights = np.asarray(weighting.weights(outer, (), BATCH, losses))[np.asarray(BATCH["row_id"]) >= 0]
    found = entropy_penalty(0.7, weighting)(outer, (), BATCH, losses)
    assert float(found) == pytest.approx(0.7 * np.mean(weights * np.log(weights)), rel=1e-5)
    assert np.ptp(weights) > 0.1


def test_centred_logits_weigh_the_same_and_put_the_mean_weight_at_zero():
    centred = row_logits().centred(LOGITS)
    np.testing.assert_allclose(pool_weights(centred), pool_weights(LOGITS), rtol=1e-6)
    assert float(jax.nn.logsumexp(centred)) == pytest.approx(float(jnp.log(4.0)), rel=1e-6)
    np.testing.assert_array_equal(row_logits("sigmoid").centred(LOGITS), LOGITS)
