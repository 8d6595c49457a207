"""What `experiments.dwm_pretrain` can be told, and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from bilevel.core.ranges import check_ranges
from bilevel.methods import TrainingSettings
from bilevel.methods.dwm import DWMSettings
from bilevel.runs.run_options import RunOptions
from bilevel.weighting import EncoderSettings
from experiments.options import ModelOptions, TextCorpusOptions, TextOptions
from experiments.tasks import EvaluationOptions


@dataclass(frozen=True)
class DWMPretrain:
    """Pre-trains on plain text of mixed sources, with a network that weighs each document of a batch.

    The upper level wants the last word of trusted passages told (as LAMBADA does): the network learns which documents
    help there, in stages between which it is frozen. Without files the run makes its own text: short documents of which
    six tenths come from sources that are wrong, cut off, mixed up, shuffled or empty, and a small Llama from random
    weights. Text of your own, each file a source:

        python -m experiments.dwm_pretrain --train stories.txt,articles.txt --valid passages.jsonl --steps 500

    The run folder holds snapshots/ (the network after each stage, for experiments.transfer and for
    experiments.dwm_filter), weights.parquet (each document's weight and loss, by stage), selected.jsonl, model/ and
    report.html, which shows what the weights prefer and how much each source weighs, stage by stage.

    Attributes:
        preset: Which set of defaults the other flags change.
        seed: Of the text corpus, the halves of --valid, the random model, the network and the order of documents.
        baselines: Whether to train what DWM must be compared with, too.
        top_share: Share of the documents that selected.jsonl keeps, the heaviest.
        population: Inner models that teach the network, as in DataRater: 1 is the run's own model; more are trained
            beside it, each with an Adam of its own on the network's gradient, and their steps are averaged.
        reset_every: Steps of the network after which a model of the population begins anew, one after another; 0 for
            never.
        alarm: Effective sample size, as a share of the documents, below which the weights count as collapsed.
    """

    preset: Literal["tiny"] = "tiny"
    seed: int = 0
    baselines: Literal["all", "none"] = "all"
    top_share: float = 0.5
    population: int = 1
    reset_every: int = 0
    alarm: float = 0.1
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)
    data: Annotated[TextOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=TextOptions)
    corpus: TextCorpusOptions = field(default_factory=TextCorpusOptions)
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    training: Annotated[TrainingSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingSettings)
    dwm: DWMSettings = field(default_factory=DWMSettings)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("top_share", 0 < self.top_share <= 1, "in (0, 1]"),
            ("population", self.population >= 1, "1 or more"),
            ("reset_every", self.reset_every >= 0, "0 or more"),
            ("alarm", 0 <= self.alarm <= 1, "in [0, 1]"),
        )
        if self.reset_every and self.population == 1:
            raise ValueError("reset_every resets models of a population: give --population 2 or more with it")


PRESETS = {
    "tiny": DWMPretrain(
        training=TrainingSettings(
            steps=1000,
            batch_rows=64,
            upper_rows=64,
            packing="auto",
            learning_rate=8e-3,
            weight_decay=0.1,
        ),
        # A wider network tells single documents apart, which costs more of them than their faults cost.
        dwm=DWMSettings(
            network="tokens_and_loss",
            encoder=EncoderSettings(width=4, heads=1, mlp_width=4),
            signal="relative",
            model_steps="committed",
            hypergradient_steps=150,
            learning_rate=1e-3,
            weight_decay=1.0,
        ),
    ),
}
