"""BDS and its baselines where the answer is known: a toy in which the faulty rows contradict the others."""

from __future__ import annotations

import functools

import numpy as np
import optax
import pytest

from bilevel.core import EstimatorSettings
from bilevel.methods import TrainingSettings, bds, clean_only, direct_mixing, uniform_tuning, validation_only
from bilevel.methods.bds import BDSSettings
from bilevel.schedule import run_schedule
from bilevel.weighting import separation_auc
from tests.schedule.toy import MODEL, context, data, start

TRAINING = TrainingSettings(steps=150, batch_rows=16, upper_rows=16, learning_rate=0.05)
FAULTY = np.arange(60) < 24


def outcome(method):
    return run_schedule(method.evaluated().schedule, start(), context())


@functools.cache
def uniform():
    return outcome(uniform_tuning(MODEL, data(), training=TRAINING))


@pytest.mark.filterwarnings("ignore:identity differentiates a gradient step")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("penalty", {}, marks=pytest.mark.slow),
        ("penalty", {"upper_share": 0.5, "upper_share_drop": 0.05}),
        pytest.param("penalty_single", {"entropy": 0.1}, marks=pytest.mark.slow),
        ("penalty_single", {"rate": 0.5, "entropy": 0.4}),
        pytest.param("penalty_single", {"rule": "sgd", "entropy": 0.1}, marks=pytest.mark.slow),
        pytest.param("penalty_single", {"entropy": 0.5, "floor": 0.05}, marks=pytest.mark.slow),
        ("penalty_single", {"weights": "sigmoid", "rule": "sgd", "entropy": 0.1}),
        ("penalty_single", {"keep_share": 0.6}),
        pytest.param("identity", {"rate": 3.0}, marks=pytest.mark.slow),
        ("optimizer_aware", {"rate": 30.0}),
        ("penalty_single", {"entropy": 0.1, "lower_steps": 3, "rate": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(map(str, value.values())),
)
def test_faulty_rows_lose_their_weight(name, options):
    settings = BDSSettings(**({"rate": 0.3, "entropy": 0.0, "outer_warmup": 20} | options))
    found = bds(MODEL, data(), training=TRAINING, settings=settings, hypergradient=EstimatorSettings(name))
    state = outcome(found)
    weights = state.column("weight")
    assert separation_auc(weights[FAULTY], weights[~FAULTY]) > 0.97
    assert set(state.signals) == {"loss_start", "loss_end", "weight"}
    assert len(state.rows("selected")) == 30
    assert np.mean(FAULTY[state.rows("selected")]) < 0.1
    if options.get("floor"):
        assert weights.min() >= options["floor"]
    if options.get("keep_share"):
        assert np.sum(weights > 0) == 36


@pytest.mark.parametrize(
    ("hypergradient", "options", "said"),
    [
        (EstimatorSettings("identity"), {}, "optimizer_aware differentiates Adam's"),
        (EstimatorSettings("optimizer_aware"), {"lower_steps": 3}, "the last of 3 inner steps"),
        (EstimatorSettings("conjugate_gradient", damping=0.1), {}, "1 inner steps between outer steps"),
        (EstimatorSettings("neumann"), {"lower_steps": 9}, "add damping"),
        (EstimatorSettings("unroll"), {}, "optimizer_aware at a higher price"),
        (EstimatorSettings("soba"), {}, "add damping"),
        (EstimatorSettings("penalty_single"), {"entropy": 0.0}, "rows of least loss"),
        (EstimatorSettings("penalty"), {"rule": "adam"}, "how often a row was visited"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_combinations_that_mislead_warn_in_one_line(hypergradient, options, said):
    with pytest.warns(UserWarning, match=said) as caught:
        bds(
            MODEL,
            data(),
            training=TRAINING,
            settings=BDSSettings(**options),
            hypergradient=hypergradient,
        )
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_lower_steps_take_the_same_optimizer_steps_with_fewer_moves_of_the_weights():
    training = TrainingSettings(steps=30, batch_rows=16, upper_rows=16, learning_rate=0.05)
    settings = BDSSettings(outer_warmup=6, lower_steps=3)
    state = outcome(bds(MODEL, data(), training=training, settings=settings))
    assert int(state.solver.step) == 10
    assert int(optax.tree.get(state.solver.inner.optimizer, "ScaleByAdamState").count) == 30


def test_the_oracle_beats_uniform_and_only_trusted_rows_move_nothing_of_the_pool():
    oracle = outcome(clean_only(MODEL, data(), training=TRAINING, faulty=FAULTY))
    trusted = outcome(validation_only(MODEL, data(), training=TRAINING))
    mixed = outcome(direct_mixing(MODEL, data(), training=TRAINING, upper_share=0.5))
    assert oracle.results["test"]["loss"] < mixed.results["test"]["loss"] < uniform().results["test"]["loss"]
    np.testing.assert_allclose(oracle.column("weight"), np.where(FAULTY, 0.0, 60 / 36), rtol=1e-6)
    assert "weight" not in trusted.signals


def test_direct_mixing_at_share_one_is_training_on_trusted_rows_alone():
    mixed = outcome(direct_mixing(MODEL, data(), training=TRAINING, upper_share=1.0))
    unmixed = outcome(direct_mixing(MODEL, data(), training=TRAINING, upper_share=0.0))
    plain = uniform()
    np.testing.assert_allclose(
        unmixed.models["current"]["table"], plain.models["current"]["table"], rtol=1e-4, atol=1e-5
    )
    assert mixed.results["test"]["loss"] < plain.results["test"]["loss"]


def test_the_weights_move_in_a_run_that_is_shorter_than_the_warm_up():
    training = TrainingSettings(steps=12, batch_rows=16, upper_rows=16, learning_rate=0.05)
    state = outcome(bds(MODEL, data(), training=training, settings=BDSSettings(outer_warmup=500)))
    assert int(state.solver.step) == 12
    assert np.mean(state.column("weight") != 1.0) > 0.9


def test_adam_on_softmax_logits_warns_and_still_runs():
    settings = BDSSettings(rule="adam", rate=0.05, outer_warmup=0)
    with pytest.warns(UserWarning, match="how often"):
        found = bds(MODEL, data(), training=TRAINING, settings=settings)
    outcome(found)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"upper_share": 1.5}, "upper_share"),
        ({"rate": 0.0}, "rate"),
        ({"floor": 1.0}, "floor"),
        ({"keep_share": 0.0}, "keep_share"),
        ({"entropy": -1.0}, "entropy"),
        ({"outer_warmup": -1}, "outer_warmup"),
        ({"lower_steps": 0}, "lower_steps"),
        ({"weights": "sigmoid", "rule": "exponentiated"}, "softmax"),
    ],
)
def test_settings_outside_their_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        BDSSettings(**bad)
