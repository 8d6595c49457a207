"""Bilevel data selection on Alpaca-style rows: `python -m experiments.bds_alpaca --help`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from bilevel.methods import (
    BDSSettings,
    TrainingSettings,
    bds,
    clean_only,
    direct_mixing,
    uniform_tuning,
    validation_only,
)
from bilevel.objectives import mean_loss
from bilevel.runtime.compilation_cache import enable_compilation_cache
from experiments.command import run_command
from experiments.inputs import Inputs, load_inputs
from experiments.options import CorpusOptions, DataOptions, ModelOptions
from experiments.session import Methods, run_methods

NAME = "bds_alpaca"


@dataclass(frozen=True)
class BDSAlpaca:
    """Learns one weight for each training row so that a model tuned on the weighted rows does well on trusted rows.

    Without files it makes its own: a corpus of short instructions, 40% of them faulty, 128 trusted rows, and a small
    Llama from random weights. It then compares BDS with fine-tuning on everything (uniform), on both sets (direct
    mixing), on the trusted rows alone, and on the rows that are not faulty, which only an oracle knows.

    Your own rows and model:

        python -m experiments.bds_alpaca --train pool.jsonl --valid trusted.jsonl --model MODEL_FOLDER --steps 500

    The run folder holds weights.parquet (a weight for each row), selected.jsonl (the best rows), model/ (for
    transformers) and report.html.
    """

    preset: Literal["tiny"] = "tiny"
    """Which set of defaults the other flags change."""
    seed: int = 0
    """Of the corpus, the random model and the order of rows."""
    run_dir: Path | None = None
    """Where to write; by default runs/EXPERIMENT-PRESET-sSEED[-n], and runs/latest points to it."""
    baselines: Literal["all", "none"] = "all"
    """Whether to train what BDS must be compared with, too."""
    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    training: Annotated[TrainingSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingSettings)
    bds: BDSSettings = field(default_factory=BDSSettings)


PRESETS = {
    "tiny": BDSAlpaca(
        training=TrainingSettings(
            steps=2000, batch_rows=64, upper_rows=16, learning_rate=8e-3, weight_decay=0.3
        ),
        bds=BDSSettings(outer_warmup=150),
    ),
}


def run(config: BDSAlpaca) -> None:
    """Runs the experiment and leaves its run folder."""
    began = time.monotonic()
    enable_compilation_cache()
    inputs = load_inputs(config.data, config.corpus, config.model, config.seed)
    run_methods(NAME, config, inputs, _methods(config, inputs), main="bds", began=began)


def _methods(config: BDSAlpaca, inputs: Inputs) -> Methods:
    """The methods of the table: BDS first, so that its results do not wait for the baselines."""
    row_losses = inputs.row_losses
    upper = mean_loss(row_losses)
    pool = inputs.sets.encoded["pool"]
    faulty = np.array([bool(row.labels.get("fault")) for row in pool.rows])
    training = config.training
    methods = {"bds": bds(row_losses, upper, len(pool), training, config.bds)}
    if config.baselines == "all":
        methods["uniform"] = uniform_tuning(row_losses, upper, training)
        methods["direct_mixing"] = direct_mixing(row_losses, upper, training, config.bds.upper_share)
        methods["validation_only"] = validation_only(row_losses, upper, training)
        if faulty.any():
            methods["clean_only"] = clean_only(row_losses, upper, training, faulty)
    return methods


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, PRESETS, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
