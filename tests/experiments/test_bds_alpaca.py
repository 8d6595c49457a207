"""The main job at its smallest size, through its command line, as a user would."""

from __future__ import annotations

import json

import datasets
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from bilevel.data import read_rows
from bilevel.data.corpus import make_corpus
from bilevel.data.files import write_rows
from bilevel.errors import InputError
from bilevel.runs.config_file import read_config
from bilevel.runs.metrics import read_metrics
from bilevel.runs.standing import standing
from bilevel.runs.timing import read_timings
from bilevel.runs.weights import read_weights
from experiments.bds_alpaca import job_of_run, main
from experiments.bds_config import BDSAlpaca
from models.folder import read_folder
from tests.experiments.model_folder import write_model
from tests.experiments.runs import SMALL, refuses

ALONE = [*SMALL, "--baselines", "none"]
METHODS = ["bds", "uniform", "direct_mixing", "validation_only", "clean_only"]
METRICS = ["test_loss", "test_exact_match", "fault_auc", "hard_auc", "effective_sample_size"]


def test_the_summary_has_every_method_and_null_where_a_number_means_nothing(bds_run):
    summary = json.loads((bds_run / "summary.json").read_text())
    assert list(summary) == ["experiment", "preset", "seed", "seconds", "steps", "methods"]
    assert (summary["experiment"], summary["preset"], summary["seed"], summary["steps"]) == (
        "bds_alpaca",
        "tiny",
        3,
        6,
    )
    assert list(summary["methods"]) == METHODS
    lines = summary["methods"]
    assert all(list(line)[: len(METRICS)] == METRICS for line in lines.values())
    assert set(lines["bds"]) - set(METRICS) == {"off_topic_auc", "truncated_auc", "wrong_answer_auc"}
    assert all(line["test_loss"] > 0 for line in lines.values())
    assert all(0 <= line["test_exact_match"] <= 1 for line in lines.values())
    assert [name for name in METHODS if lines[name]["fault_auc"] is not None] == ["bds"]
    assert [name for name in METHODS if lines[name]["effective_sample_size"] is None] == ["validation_only"]
    assert lines["uniform"]["effective_sample_size"] == 48


def test_the_weights_have_a_line_for_each_row_with_its_losses_and_labels(bds_run):
    weights = read_weights(bds_run / "weights.parquet")
    corpus = make_corpus(3, rows=48, valid=16, test=16)
    assert list(weights["id"]) == [row.id for row in corpus.train]
    assert {"weight", "loss_start", "loss_end", "fault", "hard", "duplicate", "kind"} <= set(weights)
    assert list(weights["fault"]) == [row.labels["fault"] for row in corpus.train]
    assert np.mean(weights["weight"]) == pytest.approx(1.0, rel=1e-5)
    assert np.ptp(weights["weight"]) > 0
    assert np.mean(weights["loss_end"]) < np.mean(weights["loss_start"])


def test_selected_rows_are_the_heaviest_and_can_be_read_back(bds_run):
    selected = read_rows(bds_run / "selected.jsonl").rows
    weights = read_weights(bds_run / "weights.parquet")
    ids = [row.extra["id"] for row in selected]
    assert len(ids) == 24
    heaviest = np.asarray(weights["id"])[np.argsort(-weights["weight"], kind="stable")[:24]]
    assert ids == list(heaviest)


def test_the_configuration_and_metrics_can_be_read_back(bds_run):
    config = read_config(bds_run, BDSAlpaca)
    assert config.training.steps == 6
    assert config.corpus.rows == 48
    assert config.seed == 3
    lines = read_metrics(bds_run)
    assert list(lines) == METHODS
    assert [line["step"] for line in lines["bds"]] == [1, 2, 3, 4, 5, 6]


def test_the_model_folder_holds_the_trained_model_and_its_tokenizer(bds_run):
    config, params = read_folder(bds_run / "model")
    assert (config.width, config.layers) == (16, 1)
    assert (bds_run / "model" / "tokenizer.json").is_file()
    assert np.all(np.isfinite(params["embedding"]["table"]))


def test_the_model_has_a_card_and_a_tokenizer_that_transformers_loads(bds_run):
    found = ModelCard.load(bds_run / "model" / "README.md")
    assert found.data.library_name == "transformers"
    assert "by BDS on 48 rows in 6 steps" in found.text
    assert "| clean only (oracle) |" in found.text
    assert AutoTokenizer.from_pretrained(bds_run / "model").eos_token_id is not None


def test_weights_and_selected_rows_load_in_datasets(bds_run, tmp_path):
    for kind, name, count in (("parquet", "weights.parquet", 48), ("json", "selected.jsonl", 24)):
        path = str(bds_run / name)
        rows = datasets.load_dataset(kind, data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == count
        assert rows[0]["id"].startswith("corpus-train:")


def test_the_run_says_how_long_each_part_took(bds_run):
    (parts,) = read_timings(bds_run)
    names = [part.name for part in parts]
    assert {"reading rows", "encoding rows", "BDS: train", "uniform SFT: evaluate", "other"} <= set(names)
    train = next(part for part in parts if part.name == "BDS: train")
    assert train.seconds > train.compiling > 0
    assert "BDS: train" in (bds_run / "report.html").read_text()


def test_the_report_stands_alone_and_shows_rows(bds_run):
    page = (bds_run / "report.html").read_text()
    assert page.count('<svg role="img"') >= 6
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "src=" not in page
    heaviest = read_rows(bds_run / "selected.jsonl").rows[0]
    assert heaviest.extra["id"] in page


@pytest.mark.slow
def test_the_same_command_gives_the_same_weights_and_model(bds_run, tmp_path):
    again = tmp_path / "again"
    assert main([*SMALL, "--run-dir", str(again), "--baselines", "none"]) == 0
    first, second = (read_weights(folder / "weights.parquet") for folder in (bds_run, again))
    np.testing.assert_array_equal(first["weight"], second["weight"])
    stored = [(folder / "model" / "model.safetensors").read_bytes() for folder in (bds_run, again)]
    assert stored[0] == stored[1]
    assert list(json.loads((again / "summary.json").read_text())["methods"]) == ["bds"]


@pytest.fixture
def files(tmp_path):
    """Rows and a model folder of a user's own."""
    corpus = make_corpus(0, rows=40, valid=16, test=16)
    paths = {}
    for name in ("train", "valid", "test"):
        paths[name] = tmp_path / f"{name}.jsonl"
        write_rows(paths[name], getattr(corpus, name))
    write_model(tmp_path / "model")
    return paths | {"model": tmp_path / "model"}


def test_own_files_and_model(files, tmp_path, capsys):
    with files["train"].open("a") as file:
        file.write('{"instruction": "Say nothing.", "output": ""}\n')
        file.write(files["valid"].read_text().splitlines()[0] + "\n")
    flags = [
        *("--train", str(files["train"]), "--valid", str(files["valid"])),
        *("--model", str(files["model"])),
    ]
    assert main([*ALONE, *flags, "--packing", "off", "--run-dir", "own"]) == 0
    said = capsys.readouterr()
    assert "1 of 42 rows rejected (empty response)" in said.err
    assert "1 of 16 validation rows share their prompt" in said.err
    rejected = [json.loads(line) for line in (tmp_path / "own" / "rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected] == ["train.jsonl:41"]
    summary = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert summary["methods"]["bds"]["test_loss"] is None
    assert "BDS" in said.out
    # The rows' own labels are known, so there is an oracle; training never sees them.
    assert summary["methods"]["bds"]["fault_auc"] is not None


def where_it_stands(folder):
    return standing(folder, job_of_run(folder))


def test_an_implicit_hypergradient_is_chosen_by_name_and_what_it_saw_is_logged(tmp_path, capsys):
    flags = ["--hypergradient", "conjugate_gradient", "--hypergradient.curvature", "gauss_newton"]
    flags += ["--hypergradient.relative-damping", "0.1", "--bds.lower-steps", "2", "--packing", "off"]
    assert main([*ALONE, *flags, "--run-dir", "implicit"]) == 0
    assert "2 inner steps between outer steps" in capsys.readouterr().err
    last = read_metrics(tmp_path / "implicit")["bds"][-1]
    assert last["step"] == 6
    assert {"residual", "curvature", "damping", "stationarity", "direction_norm", "finite"} <= set(last)
    assert 0 < last["residual"] < 1
    assert 0 < last["damping"] <= last["curvature"]
    # Steps are those of the model, as --steps counts them, and not those of the solver.
    assert json.loads((tmp_path / "implicit" / "summary.json").read_text())["steps"] == 6
    checkable = where_it_stands(tmp_path / "implicit")
    assert (checkable.step, checkable.lower_steps) == (3, 2)
    assert (checkable.estimator.name, checkable.estimator.curvature) == ("conjugate_gradient", "gauss_newton")
    assert jnp.any(checkable.point.outer != 0)
    config = tmp_path / "implicit" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 3", "seed: 1"))
    with pytest.raises(InputError, match="changed since the run began"):
        where_it_stands(tmp_path / "implicit")


def test_wandb_without_its_package_is_refused_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuses(["--wandb", "project"], "pip install wandb", capsys, tmp_path)


@pytest.mark.slow
def test_wandb_offline_keeps_everything_in_the_run_folder(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    flags = ["--baselines", "none", "--run-dir", "run", "--wandb", "project"]
    assert main([*SMALL, *flags]) == 0
    wandb.teardown()
    identity = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    (log,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identity}.wandb")
    assert b"bds/lower_loss" in log.read_bytes()


def test_help_names_the_shared_flags(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for flag in (
        "--train",
        "--valid",
        "--test",
        "--model",
        "--tokenizer",
        "--preset",
        "--seed",
        "--steps",
        "--run-dir",
    ):
        assert flag in text
