"""`python -m bilevel.attribute` on a run of its smallest size: the training taken again, its scores, the judge."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import numpy as np
import pyarrow.parquet
import pytest

import bilevel
from bilevel import attribute
from bilevel.attribution import bank as bank_of_trainings
from bilevel.attribution.bank import Bank, random_subsets
from bilevel.attribution.controls import CONTROLS
from bilevel.attribution.retraining import retraining
from bilevel.attribution.weights_of_run import weights_of_run
from bilevel.attribution.whole_run_scores import WholeRunScores
from bilevel.core import ESTIMATORS
from bilevel.core.unroll import Budget, Plan
from bilevel.data import Dataset
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.methods import bds, uniform_tuning
from bilevel.model import Model
from bilevel.report.run_files import read_run
from bilevel.runs.job import job_of
from tests.attribution.weighted import DATA, STEPS, TRAINING, WEIGHTS, made
from tests.schedule import toy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, its folder and its job."""
    job, folder = made(), tmp_path_factory.mktemp("attribute") / "run"
    bilevel.run(job.methods, job.data, job.model, layout=job.layout, folder=folder)
    return folder, job


@pytest.fixture(scope="module")
def given(run):
    folder, job = run
    return retraining(job, job.main, weights_of_run(folder, job, job.main))


@pytest.fixture(scope="module")
def asked(given):
    return WholeRunScores(given)


@pytest.fixture(scope="module")
def scores(asked, tmp_path_factory):
    return asked.scores(Plan(STEPS, STEPS), tmp_path_factory.mktemp("scores")).scores


@pytest.fixture(scope="module")
def command(run):
    """Runs the command on the run, as if its folder told how it was made."""
    patch = pytest.MonkeyPatch()
    patch.setattr(attribute, "job_of_folder", lambda folder, made_by: run[1])

    def call(*flags):
        return attribute.main([str(run[0]), *flags])

    yield call
    patch.undo()


def test_the_training_is_taken_again(run, given, asked):
    folder, job = run
    end = asked.programs.end_of(given.table, given.run, STEPS).iterate.inner
    trained = bilevel.runs.running.Finished(folder, job, {}).params
    assert np.ptp(given.seen) <= 1
    assert np.sum(given.seen) == STEPS * 8
    np.testing.assert_allclose(end["table"], trained["table"], rtol=1e-5, atol=1e-6)


def test_plan_says_what_it_takes_and_starts_nothing(run, command, capsys):
    assert command("--plan", "--memory", "1MiB") == 0
    said = capsys.readouterr().out
    assert f"{STEPS} steps, 20 rows of the pool, the mean of 8 trusted rows" in said
    assert "segments     1 of 12 steps" in said
    assert "3.8 runs' worth" in said
    assert not (run[0] / attribute.FOLDER).exists()


JUDGED = ("optimizer_aware", "penalty", "loss", "length", "gradient_cosine", "random")


def test_scores_and_judge_are_left_in_the_folder_and_the_report(run, command, scores, capsys):
    folder = run[0]
    flags = ["--verify", "12", "--drop", "0.15", "--memory", "1MiB", "--estimators"]
    assert command(*flags, *JUDGED) == 0
    left = folder / attribute.FOLDER / "weighted"
    table = pyarrow.parquet.read_table(left / "scores.parquet")
    np.testing.assert_allclose(table["score"], scores[0], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(table["removal"], -scores[0] * WEIGHTS, rtol=1e-5, atol=1e-8)
    verdict = json.loads((left / "verdict.json").read_text())
    whole = verdict["of"]["whole_run"]
    assert verdict["left_out"] == 3
    assert whole["lds"]["value"] > 0.9
    assert whole["lds"]["low"] <= whole["lds"]["value"] <= whole["lds"]["high"]
    # The weight step goes a tenth of the weights' length: its curvature is left out, what is beyond is not.
    assert whole["step"] == pytest.approx(whole["promised"], rel=0.05)
    assert whole["step"] < 0 < whole["removal"] - verdict["random_removal"]
    others = {name: one["lds"]["value"] for name, one in verdict["of"].items()}
    assert list(others) == ["whole_run", *JUDGED]
    assert whole["lds"]["value"] > others["random"]
    (method, section), *_ = read_run(folder).sections
    assert method == "weighted"
    assert [table.title for table in section.tables][:2] == ["Rows that help most", "Rows that harm most"]
    assert len((left / "steps.csv").read_text().splitlines()) == STEPS + 1
    assert "whole_run" in capsys.readouterr().out


@pytest.mark.slow
def test_every_estimator_of_the_table_is_judged(command, capsys):
    assert command("--verify", "3", "--drop", "0.15", "--memory", "1MiB", "--estimators", "all") == 0
    said = capsys.readouterr().out
    judged = set(re.findall(r"^(\w+) +-?\d\.\d", said, re.MULTILINE))
    assert judged == {*ESTIMATORS, *CONTROLS} - {"unroll"}


def test_a_bank_trains_nothing_twice_and_several_trainings_at_once_are_each_alone(
    given, tmp_path, monkeypatch
):
    tables = np.stack([WEIGHTS, np.where(np.arange(20) < 3, 0.0, WEIGHTS), np.ones(20)])
    together = Bank(given, tmp_path / "a", at_once=2).retrain(tables)
    alone = Bank(given, tmp_path / "b", at_once=1).retrain(tables[1:2])
    np.testing.assert_allclose(together.upper[1:2], alone.upper, rtol=1e-5)
    np.testing.assert_allclose(together.upper, together.rows.mean(axis=1), rtol=1e-5)
    assert np.ptp(together.upper) > 1e-4

    def refuses(self, tables):
        raise AssertionError("a training was taken twice")

    monkeypatch.setattr(bank_of_trainings.Bank, "_together", refuses)
    again = Bank(given, tmp_path / "a", at_once=2).retrain(tables)
    np.testing.assert_array_equal(again.upper, together.upper)


def test_subsets_are_of_one_size_and_of_their_seed():
    found = random_subsets(40, 0.1, 6, seed=3)
    assert found.sum(axis=1).tolist() == [4] * 6
    np.testing.assert_array_equal(found, random_subsets(40, 0.1, 6, seed=3))
    assert len(np.unique(found, axis=0)) == 6


def test_each_trusted_row_alone_adds_up_to_their_mean(given, scores, tmp_path):
    found = WholeRunScores(given, "each").scores(Plan(STEPS, 5, starts=2), tmp_path)
    assert found.scores.shape == (8, 20)
    np.testing.assert_allclose(found.scores.mean(axis=0), scores[0], rtol=1e-4, atol=1e-7)


def test_tokens_add_up_to_their_rows(tmp_path):
    mask = np.zeros((20, 4), bool)
    mask[:, 1:3] = True
    pool = dataclasses.replace(DATA["pool"], loss_mask=mask)
    table = jax.random.normal(jax.random.key(0), (toy.VOCABULARY + 1, toy.VOCABULARY + 1))
    model = Model.from_logits(lambda params, tokens: params["table"][tokens], {"table": table})
    data = {**DATA, "pool": pool}
    job = job_of(
        uniform_tuning(model, data, training=TRAINING), data, model, layout=data_layout(jax.devices()[:1])
    )
    text = retraining(job, "uniform", WEIGHTS)
    rows = WholeRunScores(text).scores(Plan(STEPS, STEPS), tmp_path / "rows")
    found = WholeRunScores(text, tokens=True).scores(Plan(STEPS, STEPS), tmp_path / "tokens")
    assert found.tokens is not None
    np.testing.assert_allclose(found.scores, rows.scores, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.tokens.sum(axis=-1), found.scores, rtol=1e-5, atol=1e-8)
    assert np.all(found.tokens[0][:, [0, 3]] == 0)
    assert np.any(found.tokens[0][:, 1] != 0)


def test_tokens_of_rows_that_are_no_text_are_refused(given):
    with pytest.raises(InputError, match="--tokens: these rows are no text"):
        WholeRunScores(given, tokens=True)


def test_devices_share_the_batches(scores, tmp_path):
    job = made(devices=4)
    found = WholeRunScores(retraining(job, job.main, WEIGHTS)).scores(Plan(STEPS, 5, starts=2), tmp_path)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-3, atol=1e-7)


def test_the_run_of_a_method_that_learns_weights_is_taken_at_what_it_left(run):
    learned = bds(toy.MODEL, DATA, training=dataclasses.replace(TRAINING, steps=8))
    job = made(method=learned)
    assert retraining(job, "bds", WEIGHTS).run.steps == 8
    with pytest.raises(InputError, match="has not finished: take --weights uniform"):
        weights_of_run(run[0].parent, job, "bds")
    np.testing.assert_allclose(weights_of_run(run[0], job, "bds"), WEIGHTS, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--last", "99"], "--last 99: the run has 12 steps"),
        (["--memory", "1KiB", "--disk", "0"], "too small for any plan"),
        (["--memory", "lots"], "'lots' is no number of bytes"),
        (["--estimators", "magic"], "--estimators magic: choose among"),
        (["--method", "other"], "--method other: this run has no such method"),
        (["--verify", "9", "--drop", "1.5", "--memory", "1MiB"], "--drop 1.5: a subset must leave rows"),
        (["--verify", "2", "--memory", "1MiB"], "--verify 2: a rank correlation takes at least 3"),
    ],
)
def test_bad_input_is_said_in_one_line(command, flags, said, capsys):
    assert command(*flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_folder_without_a_run_and_a_run_of_other_rows_are_refused(run, tmp_path, monkeypatch, capsys):
    other: dict[str, Dataset] = {**DATA, "pool": toy.encoded(20, 5)}
    job = job_of(uniform_tuning(toy.MODEL, other, training=TRAINING), other, toy.MODEL)
    monkeypatch.setattr(attribute, "job_of_folder", lambda folder, made_by: job)
    assert attribute.main([str(tmp_path)]) == 2
    assert "the run has not begun" in capsys.readouterr().err
    assert attribute.main([str(run[0])]) == 2
    assert "the pool changed since the run began" in capsys.readouterr().err


def test_a_window_and_a_budget_give_their_plan(asked):
    footprint = asked.footprint()
    tight = asked.plan(footprint, Budget(footprint.of_segment(2) + 3 * footprint.state), last=9)
    assert (tight.first, tight.keeps) == (3, "starts")
