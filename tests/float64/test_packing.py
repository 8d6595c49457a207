"""Packed batches through training, scoring and weighing on eight devices: the same numbers as padded ones on one."""

from __future__ import annotations

import chex
import jax
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, identity, implicit
from bilevel.data import Packing
from bilevel.layout import data_layout
from bilevel.model import Model
from bilevel.objectives import mean_loss
from bilevel.schedule import (
    BatchPlan,
    Context,
    Evaluate,
    Round,
    RunState,
    Score,
    Steps,
    Train,
    Weigh,
    run_schedule,
)
from bilevel.weighting import exponentiated_gradient, row_logits
from tests.schedule.ragged import LOSSES, MATCHES, POOL, TEST, TRUSTED, parameters


def outcome(devices: int, packing: Packing) -> RunState:
    params = parameters(np.float64)
    context = Context(
        Model(LOSSES, params, evaluate=MATCHES),
        data_layout(jax.devices()[:devices]),
        evaluation_rows=32,
        packing=packing,
    )
    problem = RowProblem(LOSSES, row_logits(), mean_loss(LOSSES))
    solver = alternating(problem, optax.sgd(0.5), exponentiated_gradient(3.0), implicit(identity(1.0)))
    plan = BatchPlan(32, 32, accumulate=2, lower_steps=2, packing=packing)
    train = Train(problem, solver, Steps(4), plan)
    moves = (Score("before"), train, Weigh(problem.weighting), Score("after"), Evaluate("test"))
    data = {"pool": POOL, "validation": TRUSTED, "test": TEST}
    start = RunState(models={"base": params, "current": params}, data=data)
    return run_schedule((Round(moves),), start, context)


def test_packed_training_on_eight_devices_is_padded_training_on_one() -> None:
    padded, packed = outcome(1, "off"), outcome(8, "on")
    assert np.ptp(padded.signals["weight"].values) > 1
    for name, column in padded.signals.items():
        np.testing.assert_allclose(packed.signals[name].values, column.values, rtol=1e-6, err_msg=name)
    found = [jax.device_get(state.models["current"]) for state in (padded, packed)]
    chex.assert_trees_all_close(*found, rtol=1e-10, atol=1e-10)
    for name, value in padded.results["test"].items():
        assert packed.results["test"][name] == pytest.approx(value, rel=1e-10)
