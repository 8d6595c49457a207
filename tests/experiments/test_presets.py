"""Presets, what the flags on them mean together, and what their steps need."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import jax
import pytest

import models
from bilevel.layout import data_layout
from bilevel.runs.config_file import read_config
from bilevel.runs.configuration import parse
from bilevel.runs.metrics import read_metrics
from experiments import memory
from experiments.bds_alpaca import NAME, job_of, main
from experiments.bds_config import PRESETS, BDSAlpaca, presets_for

SMALL = [
    *("--width", "16", "--heads", "2", "--kv-heads", "1", "--mlp-width", "16", "--vocab-size", "300"),
    *("--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16", "--baselines", "none"),
    *("--batch-rows", "16", "--upper-rows", "16", "--run-dir", "run"),
]


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


@pytest.mark.parametrize(
    ("preset", "devices"),
    [pytest.param("llama3_1b_lora", 1, marks=pytest.mark.slow), ("llama3_8b", 8)],
)
def test_steps_of_true_size_lower_without_weights_and_without_a_device(preset, devices):
    run = PRESETS[preset]
    config = models.KNOWN[str(run.model.model)]
    plan = memory.plan_run(run, config, data_layout(jax.devices()[:devices]), rows=50_000)
    base, state, lower = plan.frozen, plan.state, plan.lower_batches
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


AUTHOR = [*SMALL, "--author", "--epochs", "1.5", "--top-share", "0.25"]


def test_author_moves_weights_as_published_and_says_what_is_wrong_with_it(capsys):
    config = parse(NAME, presets_for(AUTHOR), AUTHOR)
    assert config.author
    assert (config.bds.rule, config.bds.rate, config.bds.entropy) == ("adam", 1e-4, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job = job_of(config)
    said = capsys.readouterr().err
    assert (
        "warning: --author reproduces published choices that do not weigh rows by their worth: Adam" in said
    )
    # Epochs take the place of steps: 72 rows in batches of 16.
    assert job.main_method.lower_steps == 5


@pytest.mark.slow
def test_a_run_with_the_authors_weights_hardly_moves_them_and_keeps_the_share_that_was_asked_for(tmp_path):
    assert main(AUTHOR) == 0
    assert read_config(tmp_path / "run", BDSAlpaca).author
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["methods"]["bds"]["effective_sample_size"] == pytest.approx(48, rel=1e-3)
    assert [line["step"] for line in read_metrics(tmp_path / "run")["bds"]][-1] == summary["steps"] == 5
    assert len((tmp_path / "run" / "selected.jsonl").read_text().splitlines()) == 12


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
        (["--attention", "fused"], "attention fused: this device has no kernel"),
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
