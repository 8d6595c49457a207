"""BDS on an adapter of a real trained model, with real rows, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.runs.config_file import read_config
from bilevel.runs.weights import read_weights
from experiments.bds_alpaca import BDSAlpaca, main
from experiments.loading import load_rows
from experiments.options import CorpusOptions, DataOptions, LoraOptions, ModelOptions

pytestmark = pytest.mark.slow

STEPS = [
    *("--steps", "6", "--batch-rows", "16", "--upper-rows", "16", "--bds.outer-warmup", "1"),
    "--max-length",
    "64",
]


@pytest.fixture(scope="module")
def run(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 160 rows against 32 trusted ones."""
    model, rows = shared_folder / "models" / "stories260k", shared_folder / "data" / "val_rasbt_1100.jsonl"
    if not (model.is_dir() and rows.is_file()):
        pytest.skip(f"{model} or {rows} is not there")
    folder = tmp_path_factory.mktemp("adapter")
    lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
    for name, chosen in (("train", lines[:160]), ("valid", lines[200:232])):
        (folder / f"{name}.jsonl").write_text("".join(chosen), encoding="utf-8")
    flags = [
        "--train",
        str(folder / "train.jsonl"),
        "--valid",
        str(folder / "valid.jsonl"),
        "--model",
        str(model),
    ]
    adapter = ["--lora.rank", "4", "--lora.alpha", "8", "--lora.targets", "all", "--hypergradient", "penalty"]
    trained = ["--learning-rate", "0.01", "--baselines", "none", "--run-dir", str(folder / "run")]
    assert main([*STEPS, *flags, *adapter, *trained]) == 0
    return folder / "run"


def test_the_run_leaves_an_adapter_that_says_what_it_belongs_to(run: Path, shared_folder: Path):
    described = json.loads((run / "model" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str((shared_folder / "models" / "stories260k").resolve())
    assert (described["r"], described["lora_alpha"]) == (4, 8)
    assert described["target_modules"] == sorted(
        f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")
    )
    assert not (run / "model" / "model.safetensors").exists()
    assert read_config(run, BDSAlpaca).lora.targets == ("all",)


def test_the_adapter_lowers_the_loss_of_the_rows_and_the_weights_moved(run: Path, shared_folder: Path):
    weights = read_weights(run / "weights.parquet")
    assert np.mean(weights["loss_end"]) < np.mean(weights["loss_start"]) - 0.1
    assert np.ptp(weights["weight"]) > 0
    # What stands in the folder is what the last losses were measured with.
    data = DataOptions(str(run.parent / "train.jsonl"), str(run.parent / "valid.jsonl"), max_length=64)
    model = ModelOptions(model=shared_folder / "models" / "stories260k")
    for lora, column in ((LoraOptions(), "loss_start"), (LoraOptions(adapter=run / "model"), "loss_end")):
        inputs = load_rows(data, CorpusOptions(), model, seed=0, lora=lora)
        batch = jax.tree.map(jnp.asarray, inputs.data["pool"].batch(list(range(16))))
        found = jax.jit(inputs.model.row_losses)(inputs.model.params, batch).means
        np.testing.assert_allclose(found, weights[column][:16], rtol=1e-4)
