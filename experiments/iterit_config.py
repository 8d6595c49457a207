"""What `experiments.iterit_alpaca` can be told, and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bilevel.data.corpus import Shares
from bilevel.methods import IterITSettings, TrainingSettings
from bilevel.runs.run_options import RunOptions
from experiments.options import CorpusOptions, DataOptions, LoraOptions, ModelOptions
from experiments.tasks import EvaluationOptions


@dataclass(frozen=True)
class IterITAlpaca:
    """Trains on a few rows, chosen anew for every epoch by how hard they are for the model now and how different.

    Without files it makes its own rows: a corpus of short instructions, and a small Llama from random weights, which
    first gets some experience of a tenth of the rows, as a model that knows nothing cannot say what is hard. It then
    compares IterIT with as many rows at random, once or anew for every epoch, with the longest, with those of the
    highest complexity ratio and of ratio times diversity, chosen once, and with all rows.

    Your own rows and model, all of its parameters or a low-rank adapter beside them:

        python -m experiments.iterit_alpaca --preset published --train pool.jsonl --valid trusted.jsonl --model FOLDER

    The run folder holds weights.parquet (how often a row was trained on, and its complexity ratio by epoch),
    selected.jsonl (the rows of the last epoch, in the order in which they were taken), signals/ (everything that was
    measured, by content), model/ and report.html.

    Attributes:
        preset: Defaults that the other flags change: tiny runs anywhere in minutes, published is the authors' script.
        seed: Random seed for corpus, model, experience and row order.
        baselines: Whether to train what IterIT must be compared with, too.
        signals: Folder where complexity ratios are kept by content, so that other runs find them; by default the run's
            own.
    """

    preset: Literal["tiny", "published"] = "tiny"
    seed: int = 0
    baselines: Literal["all", "none"] = "all"
    signals: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)
    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    training: Annotated[TrainingSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingSettings)
    iterit: IterITSettings = field(default_factory=IterITSettings)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)


PRESETS = {
    # The corpus answers in a word or a number, which words of two letters or more would leave out. Its faults are rows
    # whose prompt does not help, and so "hard": without them it shows what choosing can do, with them (--corpus.shares
    # .fault 0.4) what it cannot.
    "tiny": IterITAlpaca(
        corpus=CorpusOptions(shares=Shares(fault=0.0)),
        training=TrainingSettings(
            batch_rows=16, upper_rows=16, packing="auto", learning_rate=2e-3, weight_decay=0.3
        ),
        iterit=IterITSettings(
            epochs=6,
            pool_factor=1.0,
            ngrams="tokens",
            lengths="root",
            experience=0.1,
            experience_steps=400,
            experience_rate=4e-3,
        ),
    ),
    # scripts/train_IterIT.sh of the authors' repository (JiaQiSJTU/IterIT, 433ac6f), but for AdamW on bfloat16 weights:
    # what is trained stays float32 here. Batches of 32 in micro-batches of 1.
    "published": IterITAlpaca(
        preset="published",
        data=DataOptions(
            train="tatsu-lab/alpaca", valid="tatsu-lab/alpaca:train[:128]", template="chat", max_length=1024
        ),
        model=ModelOptions(model=Path("meta-llama/Llama-3.1-8B"), dtype="bfloat16", remat="full", shard=True),
        training=TrainingSettings(
            batch_rows=32,
            upper_rows=32,
            accumulate=32,
            packing="auto",
            learning_rate=2e-5,
            warmup_share=0.03,
            final_share=0.0,
            beta2=0.999,
        ),
    ),
}
