"""`bilevel.run`: what a notebook hands over, and what it gets back."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bilevel
import models
from bilevel import check
from bilevel.core import Mean, Problem, alternating, identity, implicit
from bilevel.data import ArrayRows, ReadRows, Row, prepare_sets, train_tokenizer
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.methods import BDSSettings, Leaves, TrainingSettings, bds, shuffled_weights, uniform_tuning
from bilevel.objectives.classes import class_losses, right_classes
from bilevel.runs import running
from bilevel.runs.run_record import FOLDER
from bilevel.runs.stopping import RunEnded
from bilevel.schedule import BatchPlan, CheckpointSaver, Round, Steps, Train
from bilevel.storage.checkpoints import CheckpointOptions
from models import classifier

TRAINING = TrainingSettings(steps=4, batch_rows=8, upper_rows=8, learning_rate=0.05)
OFTEN = CheckpointOptions(every_steps=2)
ALONE = data_layout(jax.devices()[:1])
"""One device: programs for eight take longer to compile, and one test has them."""


def array_rows(seed: int, rows: int) -> ArrayRows:
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3)).astype(np.float32)
    return ArrayRows({"x": x, "y": (x[:, 0] > 0).astype(np.int32)})


DATA = {"pool": array_rows(0, 24), "validation": array_rows(1, 16), "test": array_rows(2, 10)}
MODEL = bilevel.Model(
    row_losses=class_losses(classifier.logits),
    params=classifier.init(jax.random.key(0), inputs=3, classes=2, width=0),
    evaluate=right_classes(classifier.logits),
)
METHOD = bds(MODEL, DATA, training=TRAINING, settings=BDSSettings(outer_warmup=1))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return bilevel.run(METHOD, DATA, MODEL, folder=folder, checkpoints=OFTEN, layout=ALONE)


def test_rows_that_are_no_text_leave_weights_selection_model_and_report(whole):
    assert whole.weights.shape == (24,)
    assert whole.weights.mean() == pytest.approx(1, rel=1e-5)
    assert np.ptp(whole.weights) > 0
    np.testing.assert_array_equal(whole.selected, np.argsort(-whole.weights, kind="stable")[:12])
    assert {"id", "weight", "loss_start", "loss_end"} <= set(whole.columns)
    assert list(whole.columns["id"]) == DATA["pool"].names(range(24))
    assert list(whole.results) == ["bds"]
    assert 0 <= whole.results["bds"]["test_exact_match"] <= 1
    chex.assert_trees_all_equal_shapes_and_dtypes(whole.params, MODEL.params)
    losses = class_losses(classifier.logits)(
        whole.params, jax.tree.map(jnp.asarray, DATA["pool"].batch(range(24)))
    ).means
    np.testing.assert_allclose(losses, whole.columns["loss_end"], rtol=1e-5)
    assert "BDS" in whole.report.read_text()
    selected = [json.loads(line) for line in (whole.folder / "selected.jsonl").read_text().splitlines()]
    assert [line["id"] for line in selected] == DATA["pool"].names(whole.selected)


def stopped(folder, asked: int, monkeypatch, methods=METHOD, **options):
    """A run that is asked to stop when it looks for the n-th time."""
    looks = iter(range(asked))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointSaver, "stopping", lambda self: next(looks, None) is None)
        with pytest.raises(RunEnded, match="resume=True"):
            bilevel.run(methods, DATA, MODEL, folder=folder, checkpoints=OFTEN, layout=ALONE, **options)


def test_a_run_that_is_stopped_and_continued_is_the_run_that_was_not(whole, tmp_path, monkeypatch):
    stopped(tmp_path / "run", 5, monkeypatch)
    found = bilevel.run(
        METHOD, DATA, MODEL, folder=tmp_path / "run", resume=True, checkpoints=OFTEN, layout=ALONE
    )
    assert found.results == whole.results
    for name in ("weights.parquet", "metrics.jsonl", "selected.jsonl"):
        assert (found.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    chex.assert_trees_all_equal(found.params, whole.params)


def test_a_finished_run_is_read_back(whole, monkeypatch):
    monkeypatch.setattr(running, "run_job", None)
    found = bilevel.run(METHOD, DATA, MODEL, folder=whole.folder, resume=True, layout=ALONE)
    assert found.results == whole.results
    np.testing.assert_array_equal(found.weights, whole.weights)


def test_a_run_goes_on_with_the_rows_and_the_model_that_it_began_with(tmp_path, monkeypatch):
    stopped(tmp_path / "run", 3, monkeypatch)
    others = {**DATA, "validation": array_rows(5, 16)}
    with pytest.raises(InputError, match="the trusted rows changed since the run began"):
        bilevel.run(METHOD, others, MODEL, folder=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="not empty"):
        bilevel.run(METHOD, DATA, MODEL, folder=tmp_path / "run")


def test_the_hypergradient_is_checked_where_the_run_stands(whole):
    found = whole.check(horizon=1, settle=2, directions=2)
    assert "No hypergradient: it descends the weighted loss" in str(found)


def test_methods_by_name_may_be_made_from_the_weights_of_the_main_one(tmp_path, monkeypatch):
    methods = {
        "uniform": uniform_tuning(MODEL, DATA, training=TRAINING),
        "mine": METHOD,
        "shuffled": lambda weights: shuffled_weights(MODEL, DATA, weights, training=TRAINING),
    }
    found = bilevel.run(methods, DATA, MODEL, main="mine", seed=3, layout=ALONE)
    assert found.folder.parent.name == "runs"
    assert list(found.results) == ["uniform", "mine", "shuffled"]
    size = found.results["mine"]["effective_sample_size"]
    assert found.results["shuffled"]["effective_sample_size"] == pytest.approx(size)
    # Stopped in each of them, the run ends as this one.
    for asked, resume in ((3, False), (9, True), (11, True)):
        stopped(tmp_path / "run", asked, monkeypatch, methods, main="mine", seed=3, resume=resume)
    again = bilevel.run(
        methods, DATA, MODEL, main="mine", seed=3, layout=ALONE, folder=tmp_path / "run", resume=True
    )
    assert again.results == found.results
    for name in ("weights.parquet", "metrics.jsonl"):
        assert (again.folder / name).read_bytes() == (found.folder / name).read_bytes(), name
    chex.assert_trees_all_equal(again.params, found.params)


MINE = """
from tests.runs.test_running import DATA, METHOD, MODEL, array_rows
import bilevel


def job():
    return bilevel.job(METHOD, DATA, MODEL)


def other_rows():
    return bilevel.job(METHOD, {**DATA, "pool": array_rows(9, 24)}, MODEL)


def nothing():
    return METHOD
"""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (None, "was made by bilevel.run in a program of its own: name a function"),
        ("other_rows", "the pool changed since the run began"),
        ("nothing", "returned Method, not what bilevel.job(...) makes"),
        ("absent", "absent"),
    ],
)
def test_a_command_asks_for_the_function_that_made_a_run(function, said, whole, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    named = [] if function is None else ["--made-by", f"mine.py:{function}"]
    assert check.main([str(whole.folder), *named]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_command_checks_a_run_by_the_function_that_made_it(whole, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    options = ["--made-by", "mine.py:job", "--horizon", "1", "--settle", "2", "--directions", "2"]
    assert check.main([str(whole.folder), *options]) == 0
    assert f"{whole.folder}, after step 4" in capsys.readouterr().out


class Bigram(nnx.Module):
    """Scores of the next token from the present one."""

    def __init__(self, size: int, *, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(size, 4, rngs=rngs)
        self.head = nnx.Linear(4, size, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.head(self.embedding(tokens))


def test_a_flax_module_reads_text(tmp_path):
    tokenizer = train_tokenizer(["a"], 259)
    pool, trusted = (
        ReadRows(tuple(Row(f"{name}:{n}", f"Say {n}.", "", str(n)) for n in range(begin, begin + 8)), ())
        for name, begin in (("pool", 0), ("trusted", 20))
    )
    data = prepare_sets(pool=pool, validation=trusted, tokenizer=tokenizer)
    module = models.from_nnx(Bigram(len(tokenizer.get_vocab()), rngs=nnx.Rngs(0)))
    model = bilevel.Model.from_logits(module.apply, module.init(), tokenizer)
    training = TrainingSettings(steps=2, batch_rows=8, upper_rows=8, learning_rate=0.05)
    method = bds(model, data, training=training, settings=BDSSettings(outer_warmup=1))
    found = bilevel.run(method, data, model, folder=tmp_path / "run")
    assert found.columns["loss_end"].mean() < found.columns["loss_start"].mean()
    assert "Say 3." in found.report.read_text()
    chex.assert_trees_all_equal_shapes_and_dtypes(found.params, model.params)
    changed = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), found.params, model.params)
    assert all(jax.tree.leaves(changed))


def mixture(outer, inner, batch) -> Mean:
    """A ridge regression whose strength the outer variable is."""
    error = batch["x"] @ inner - batch["y"]
    rows = jnp.sum(batch["row_id"] >= 0)
    return Mean(jnp.sum(error**2) + rows * jnp.exp(outer) * jnp.sum(inner**2), rows)


def trusted_error(outer, inner, batch) -> Mean:
    error = batch["x"] @ inner - batch["y"]
    return Mean(jnp.sum(error**2), jnp.sum(batch["row_id"] >= 0))


def test_a_general_problem_leaves_its_outer_variables_and_its_model(tmp_path):
    problem = Problem(mixture, trusted_error)
    solver = alternating(
        problem, optax.sgd(0.1), optax.sgd(1.0), implicit(identity(0.1)), outer_start=jnp.asarray(-1.0)
    )
    train = Train(problem, solver, Steps(3), BatchPlan(8, 8))
    method = bilevel.Method(problem, solver, (Round((train,)),), Leaves(column=None, rows=None), name="ridge")
    model = bilevel.Model(params=jnp.zeros(3))
    found = bilevel.run(method, DATA, model, folder=tmp_path / "run", layout=ALONE)
    assert found.weights is None
    assert found.selected is None
    assert found.outer.shape == ()
    assert found.outer != -1
    assert jnp.all(found.params != 0)
    assert "ridge" in found.report.read_text()
    assert (tmp_path / "run" / FOLDER / "ridge").is_dir()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": {}}, "no method to run"),
        ({"main": "other"}, "the main method 'other' must be one of those that run and stand alone: bds"),
        ({"methods": {"late": lambda weights: METHOD}}, "must be one of those that run"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"resume": True}, "name it with folder="),
        ({"model": bilevel.Model(row_losses=MODEL.row_losses)}, "no parameters to start from"),
        ({"model": object()}, "object is no model"),
        (
            {"data": {"pool": DATA["pool"]}},
            "bds: round 1: Train reads data:validation, which nothing before it writes",
        ),
        ({"data": {**DATA, "validation": array_rows(1, 6)}}, "batch size 8 is larger than the data (6 rows)"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_said_before_anything_is_written(changes, said, tmp_path):
    given = {"methods": METHOD, "data": DATA, "model": MODEL} | changes
    with pytest.raises(InputError) as refused:
        bilevel.run(given.pop("methods"), given.pop("data"), given.pop("model"), **given)
    assert said in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_written_costs_the_model_alone(tmp_path):
    def write(folder, params):
        raise TypeError("no such type")

    model = dataclasses.replace(MODEL, write=write)
    with pytest.raises(
        RunEnded, match=r"could not be written: .*model \(TypeError: no such type\); all else"
    ) as ended:
        bilevel.run(METHOD, DATA, model, folder=tmp_path / "run", layout=ALONE)
    assert ended.value.code == 1
    for name in ("weights.parquet", "summary.json", "report.html"):
        assert (tmp_path / "run" / name).exists()
    assert "no such type" in (tmp_path / "run" / "warnings.txt").read_text()
