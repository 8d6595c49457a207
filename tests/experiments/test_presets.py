"""Presets, what the flags on them mean together, and what their steps need."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math

import jax
import pytest

from bilevel.layout.devices import data_mesh
from bilevel.runs.config_file import read_config
from bilevel.runs.metrics import read_metrics
from experiments import memory
from experiments.bds_alpaca import main
from experiments.bds_config import PRESETS, BDSAlpaca, presets_for

SMALL = [
    *("--width", "16", "--heads", "2", "--kv-heads", "1", "--mlp-width", "16", "--vocab-size", "300"),
    *("--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16", "--baselines", "none"),
    *("--batch-rows", "16", "--upper-rows", "16", "--run-dir", "run"),
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("preset", ["llama3_1b_lora", "llama3_8b"])
def test_without_a_network_a_preset_names_what_to_download_and_where_to_put_it(
    preset, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["--preset", preset]) == 2
    error = capsys.readouterr().err
    name = str(PRESETS[preset].model.model)
    assert error.startswith(f"error: {name}: no such folder, and the hub gave no model of that name")
    assert f"hf download {name} --local-dir FOLDER" in error
    assert error.endswith("name that folder instead: --model FOLDER\n")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("preset", "devices"), [("llama3_1b_lora", 1), ("llama3_8b", 8)])
def test_steps_of_true_size_lower_without_weights_and_without_a_device(preset, devices):
    run = PRESETS[preset]
    config = memory.ARCHITECTURES[str(run.model.model)]
    mesh = data_mesh(jax.devices()[:devices])
    plan = memory.plan_step(run, config, mesh, rows=50_000)
    base, state, lower, _ = plan.arguments
    parameters = {"llama3_1b_lora": 1_235_814_400, "llama3_8b": 8_030_261_248}[preset]
    assert sum(x.size for x in jax.tree.leaves(base)) == parameters
    held = [math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(base)]
    assert sum(held) == 2 * parameters // devices  # bfloat16, each device its share
    # Two copies of an adapter with two moments each, a logit a row.
    adapter = {"llama3_1b_lora": 1_703_936, "llama3_8b": 6_815_744}[preset]
    assert sum(x.size for x in jax.tree.leaves((state.inner, state.extra))) == pytest.approx(
        6 * adapter, rel=1e-5
    )
    assert lower["tokens"].shape == (1, 4, 8, run.data.max_length)
    text = plan.lower().as_text()
    assert f"tensor<{config.vocab_size}x{config.width}xbf16>" in text
    assert 'dense<"0x' not in text


def test_memory_is_told_line_by_line(capsys):
    assert (
        memory.main([*SMALL[:10], "--max-length", "16", "--rows", "100", "--lora.rank", "2", "--merge"]) == 0
    )
    said = capsys.readouterr().out
    assert "tiny on 8 x cpu, GiB on each device" in said
    assert "frozen parameters, float32" in said
    assert "temporary, in micro-batches of 64 rows of 16 tokens" in said
    assert said.splitlines()[-1].endswith("in all")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices", "0"], "--devices 0: give 1 or more"),
        (["--devices", "2", "--topology", "v5e:2x4"], "leave one out"),
        (["--accumulate", "16"], "micro-batches of 4 rows cannot be divided over 8 devices"),
        (
            ["--preset", "llama3_1b_lora", "--lora.targets", "w_proj"],
            "no linear map of a layer is called 'w_proj'",
        ),
    ],
)
def test_plans_that_cannot_be_are_refused(flags, said, capsys):
    assert memory.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run with the authors' weights for an epoch and a half; its folder and what it said."""
    folder = tmp_path_factory.mktemp("published") / "run"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        flags = [*SMALL[:-2], "--author", "--epochs", "1.5", "--top-share", "0.25", "--run-dir", str(folder)]
        assert main(flags) == 0
    return folder, said.getvalue()


def test_author_moves_weights_as_published_and_says_what_is_wrong_with_it(published):
    folder, said = published
    assert (
        "warning: --author reproduces published choices that do not weigh rows by their worth: Adam" in said
    )
    assert "UserWarning" not in said
    config = read_config(folder, BDSAlpaca)
    assert config.author
    assert (config.bds.rule, config.bds.rate, config.bds.entropy) == ("adam", 1e-4, 0.0)
    found = json.loads((folder / "summary.json").read_text())["methods"]["bds"]
    assert found["effective_sample_size"] == pytest.approx(48, rel=1e-3)  # at that rate weights hardly move


def test_epochs_take_the_place_of_steps_and_top_share_says_how_many_rows_are_kept(published):
    folder, _ = published
    assert [line["step"] for line in read_metrics(folder)["bds"]][-1] == 5  # 72 rows in batches of 16
    assert json.loads((folder / "summary.json").read_text())["steps"] == 5
    assert len((folder / "selected.jsonl").read_text().splitlines()) == 12


def test_every_preset_can_take_the_authors_weights():
    for name, preset in presets_for(["--author"]).items():
        assert preset.bds.rule == "adam"
        assert preset.hypergradient.name == "penalty_single"
        mine = PRESETS[name]
        assert dataclasses.replace(preset, bds=mine.bds, hypergradient=mine.hypergradient) == mine


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--top-share", "0"], "--top-share must be in (0, 1], not 0.0"),
        (["--top-share", "2"], "--top-share must be in (0, 1], not 2.0"),
        (["--epochs", "0"], "epochs must be positive"),
        (["--epochs", "2", "--steps", "7"], "--steps 7 and --epochs 2 say two things: leave one out"),
        (["--author", "--bds.rule", "sgd"], "--author moves logits by Adam, --bds.rule sgd does not"),
        (["--merge"], "--merge needs an adapter to merge"),
        (["--lora.rank", "0"], "--lora.rank must be at least 1, not 0"),
        (["--lora.rank", "2"], "an adapter needs its model: name one with --model"),
        (["--lora.alpha", "2"], "give it a rank with --lora.rank"),
        (
            ["--lora.rank", "2", "--merge", "--lora.targets", "c_attn"],
            "no linear map of a layer is called 'c_attn'",
        ),
        (["--attention", "fused"], "--attention fused: this device has no kernel"),
        (["--dtype", "float16"], "float16"),
        (["--upper", "nothing"], "--upper nothing: write MODULE:FUNCTION"),
        (["--upper", "json:nothing"], "json has no 'nothing'"),
        (["--shard", "--width", "20"], "width 20 cannot be divided over 8 devices"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_that_do_not_fit_are_refused_in_one_line(flags, said, capsys, tmp_path):
    assert main([*SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
