"""`python -m bilevel.check` on runs of their smallest size, and on an experiment of the test's own."""

from __future__ import annotations

import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import optax
import pytest

from bilevel import check
from bilevel.check import main
from bilevel.core import EstimatorSettings, EvaluationPoint, frozen
from bilevel.methods import Method
from bilevel.model import Model
from bilevel.runs.job import Job
from bilevel.runs.standing import Standing
from experiments import bds_alpaca, dwm_alpaca
from tests.zoo import network, row_losses, row_problem, rows

SMALL = [
    *("--steps", "6", "--batch-rows", "16", "--upper-rows", "16", "--baselines", "none"),
    *("--width", "8", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--mlp-width", "8"),
    *("--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16"),
]
ENCODER = [
    *("--dwm.stages", "2", "--dwm.hypergradient-steps", "2", "--dwm.encoder.width", "8"),
    *("--dwm.encoder.heads", "2", "--dwm.encoder.mlp-width", "8"),
]


@pytest.fixture
def checkable(tmp_path, monkeypatch):
    """Makes a run folder of an experiment whose runs stand at a small network's start."""

    def made(estimator: EstimatorSettings, lower_steps: int = 1) -> None:
        params, optimizer = network(jax.random.key(0)), optax.sgd(0.1)
        point = EvaluationPoint(jnp.zeros(6), params, rows(1, 6), rows(2, 4), optimizer)
        job = Job({"uniform": unmoved()}, {}, Model(row_losses, params), "uniform")
        module = ModuleType("experiments.invented")
        module.job_of_run = lambda folder: job  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "experiments.invented", module)
        at = Standing(row_problem(6), point, estimator, 7, lower_steps)
        monkeypatch.setattr(check, "standing", lambda folder, given: at if given is job else None)
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("experiment: invented\n")

    return made


def unmoved() -> Method:
    problem = row_problem(6)
    return Method(problem, frozen(problem, optax.sgd(0.1)), ())


def test_estimators_are_compared_with_the_next_step_and_with_further_ones(checkable, capsys):
    checkable(EstimatorSettings("optimizer_aware"))
    assert main(["run", "--hypergradient", "identity"]) == 0
    first, *found = capsys.readouterr().out.split("\n\n")
    assert first == "run, after step 7"
    heads = [part.split(" (")[0] for part in found]
    assert heads == [
        f"{name}, against the next {ahead}"
        for name in ("optimizer_aware", "identity")
        for ahead in ("step", "10 steps")
    ]
    assert "Accurate" in found[0]
    assert "Accurate" not in found[1] + found[3]


def test_the_default_horizon_is_what_the_run_looks_ahead(checkable, capsys):
    checkable(EstimatorSettings("unroll"), lower_steps=3)
    assert main(["run"]) == 0
    _, near, far = capsys.readouterr().out.split("\n\n")
    assert "against the next 3 steps" in near
    assert "Accurate" in near
    assert "against the next 10 steps" in far


def test_an_estimator_of_another_objective_is_not_called_wrong(checkable, capsys):
    checkable(EstimatorSettings("penalty_single"))
    assert main(["run", "--horizon", "1", "--settle", "2"]) == 0
    said = capsys.readouterr().out
    assert "No hypergradient: it descends the weighted loss" in said
    assert "Wrong" not in said


def test_what_an_estimator_refuses_is_said_in_one_line(checkable, capsys):
    checkable(EstimatorSettings("conjugate_gradient", curvature="gauss_newton"))
    assert main(["run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: conjugate_gradient: ")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_run_of_bds_is_checked_where_it_stands(capsys):
    flags = ["--hypergradient", "optimizer_aware", "--bds.outer-warmup", "2", "--bds.entropy", "0.1"]
    assert bds_alpaca.main([*SMALL, *flags, "--run-dir", "run"]) == 0
    capsys.readouterr()
    assert main(["run", "--horizon", "1", "--directions", "2"]) == 0
    said = capsys.readouterr().out
    assert "run, after step 6" in said
    assert "Accurate" in said


@pytest.mark.slow
def test_a_run_of_a_weight_network_is_checked_by_what_it_learns_from(capsys):
    flags = ["--dwm.hypergradient", "unroll", "--dwm.unroll-steps", "2"]
    assert dwm_alpaca.main([*SMALL, *ENCODER, *flags, "--run-dir", "run"]) == 0
    capsys.readouterr()
    assert main(["run", "--directions", "2"]) == 0
    assert "unroll, against the next 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        (None, [], "no such file"),
        ("seed: 3\n", [], "names no experiment"),
        ("experiment: nowhere\n", [], "no experiment 'nowhere'"),
        ("experiment: ../x\n", [], "names no experiment"),
        ("experiment: compare\n", [], "runs of compare cannot be taken up again"),
        ("experiment: bds_alpaca\n", ["--hypergradient", "magic"], "--hypergradient magic"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(config, flags, said, tmp_path, capsys):
    folder = tmp_path / "run"
    if config is not None:
        folder.mkdir()
        (folder / "config.yaml").write_text(config)
    assert main([str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
