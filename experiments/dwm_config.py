"""What `experiments.dwm_alpaca` can be told, and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from bilevel.methods import BDSSettings, DWMSettings, TrainingSettings
from bilevel.runs.run_options import RunOptions
from experiments.options import CorpusOptions, DataOptions, LoraOptions, ModelOptions
from experiments.tasks import EvaluationOptions


@dataclass(frozen=True)
class DWMAlpaca:
    """Trains a network that weighs each batch's rows so that the model's next step does well on trusted rows.

    Without files it makes its own rows: a corpus of short instructions, 40% of them faulty, 128 trusted rows, and a
    small Llama from random weights. It then compares DWM with fine-tuning on everything for as many steps, and for as
    much compute, as DWM took; with DWM's weights shuffled among the rows; with networks that see a row's tokens or its
    plain loss; with the alignment that the network learns from, used directly; with one logit a row (BDS); and with
    the rows that are not faulty, which only an oracle knows.

    Your own rows and model, all of its parameters or a low-rank adapter beside them:

        python -m experiments.dwm_alpaca --train pool.jsonl --valid trusted.jsonl --model FOLDER --steps 500

    The run folder holds snapshots/ (the network after each stage, for experiments.transfer and for
    experiments.dwm_filter), weights.parquet (a weight for each row), selected.jsonl (the heaviest rows), model/ and
    report.html, which shows what the weights prefer, stage by stage.

    Attributes:
        alarm: Effective sample size, as a share of the rows, below which the weights count as collapsed.
    """

    preset: Literal["tiny"] = "tiny"
    """Which set of defaults the other flags change."""
    seed: int = 0
    """Of the corpus, the random model, the network and the order of rows."""
    baselines: Literal["all", "none"] = "all"
    """Whether to train what DWM must be compared with, too."""
    top_share: float = 0.5
    """Share of the training rows that selected.jsonl keeps, the heaviest."""
    alarm: float = 0.1
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)
    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    training: Annotated[TrainingSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingSettings)
    dwm: DWMSettings = field(default_factory=DWMSettings)
    alignment_rate: float = 15.0
    """Of gradient descent on the logits of independent sigmoids, a row each, by the alignment itself."""
    bds: BDSSettings = field(default_factory=BDSSettings)
    """Of the row logits that DWM is compared with."""

    def __post_init__(self) -> None:
        if not 0 < self.top_share <= 1:
            raise ValueError(f"top_share must be in (0, 1], not {self.top_share}")
        if not 0 <= self.alarm <= 1:
            raise ValueError(f"alarm must be in [0, 1], not {self.alarm}")


PRESETS = {
    "tiny": DWMAlpaca(
        training=TrainingSettings(
            steps=2000,
            batch_rows=64,
            upper_rows=128,
            packing="auto",
            learning_rate=8e-3,
            weight_decay=0.3,
        ),
        dwm=DWMSettings(
            network="relative_loss",
            signal="relative",
            model_steps="committed",
            hypergradient_steps=300,
            learning_rate=6e-3,
        ),
        bds=BDSSettings(outer_warmup=150),
    ),
}
