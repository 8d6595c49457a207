"""What cannot be attributed is refused in one line, before time is spent."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel.attribution.budget import bytes_said
from bilevel.attribution.retraining import retraining
from bilevel.attribution.whole_run_scores import WholeRunScores
from bilevel.errors import InputError
from bilevel.methods import uniform_tuning
from bilevel.model import Model
from bilevel.runs.job import job_of
from bilevel.schedule import Move, Round
from tests.attribution.weighted import DATA, TRAINING, made
from tests.schedule import toy


class Shortened(Move):
    """A move that changes the rows."""

    reads = ("data:pool",)
    writes = ("data:pool",)

    def run(self, state, context):
        raise AssertionError("nothing runs here")


def test_runs_that_cannot_be_taken_again_are_refused_in_one_line():
    plain = uniform_tuning(toy.MODEL, DATA, training=TRAINING)
    refused = {
        "its rows change while it runs": dataclasses.replace(
            plain, schedule=(Round((Shortened(),)), *plain.schedule)
        ),
        "does not say what trains its model": dataclasses.replace(plain, inner=None),
        "no training step that stays": dataclasses.replace(plain, schedule=()),
    }
    for said, method in refused.items():
        with pytest.raises(InputError, match=said):
            retraining(made(method=method), method.name)
    with pytest.raises(InputError, match="--method other: this run has no such method"):
        retraining(made(method=plain), "other")


def test_trainings_without_a_derivative_are_refused_in_one_line():
    lion = dataclasses.replace(uniform_tuning(toy.MODEL, DATA, training=TRAINING), inner=optax.lion(1e-3))
    with pytest.raises(InputError, match="sign-based"):
        WholeRunScores(retraining(made(method=lion), "uniform")).footprint()

    def rounded(params, batch):
        return toy.row_losses(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), batch)

    half = Model(rounded, toy.parameters())
    job = job_of(uniform_tuning(half, DATA, training=TRAINING), DATA, half)
    with pytest.raises(InputError, match="computes in bfloat16"):
        WholeRunScores(retraining(job, "uniform")).footprint()


def test_bytes_are_said_as_people_say_them():
    said = {"40GiB": 40 << 30, "1.5 MiB": 3 << 19, "2MB": 2_000_000, "1e9": 10**9, "512": 512, "3K": 3000}
    assert {text: bytes_said(text) for text in said} == said
    with pytest.raises(InputError, match="no number of bytes"):
        bytes_said("-3")
