"""What `experiments.transfer` can be told, and its presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bilevel.core.ranges import check_ranges
from bilevel.data.corpus.text import TextShares
from bilevel.data.documents import Separator
from bilevel.errors import InputError
from bilevel.methods import TrainingSettings
from bilevel.runs.run_options import RunOptions
from bilevel.storage.snapshots import Snapshot, read_snapshots
from experiments import bds_config, dwm_config, pretrain_config
from experiments.options import (
    CorpusOptions,
    DataOptions,
    LoraOptions,
    ModelOptions,
    TextCorpusOptions,
    TextOptions,
)
from experiments.tasks import EvaluationOptions

_FLAG = "--weighting"


@dataclass(frozen=True)
class TransferData(DataOptions):
    """Which rows: files of your own, or (without --train) the embedded corpus, as the network read it in training.

    Attributes:
        train: Rows to weight, as --train of dwm_alpaca or, for a network of plain text, of dwm_pretrain.
        valid: Trusted rows, or passages, whose loss is shown beside; needed with --train.
        test: Held-out rows, or passages, for the final table.
        template: Instruction rows only: wording around questions and responses.
        targets: Instruction rows only: which responses of a conversation are learned.
        max_length: Most tokens of a row.
        truncation: Instruction rows only: what rows that are longer lose.
        max_rejected: Largest share of a file's rows that may be unusable before the run refuses it.
        separator: Plain text only: what stands between the documents of a .txt file.
    """

    separator: Separator = "auto"


@dataclass(frozen=True)
class TransferCorpus(CorpusOptions):
    """The embedded corpus, generated from the seed; used without --train.

    Attributes:
        rows: Training rows, or documents.
        valid: Trusted rows, or passages.
        test: Held-out rows, or passages.
        shares: Instruction rows only.
        text_shares: Plain text only.
    """

    text_shares: TextShares = field(default_factory=TextShares)


@dataclass(frozen=True)
class Transfer:
    """Trains a model at the weights of a network that another run has trained, beside uniform training.

    Nothing is learned about the rows here: each batch takes one forward pass of the network. The model may be of
    another size or family, and the rows others than those that the network was trained on:

        python -m experiments.transfer --weighting runs/NAME/last --width 128

    What the network read decides what this run reads: instruction rows (a run of dwm_alpaca) or plain text (a run of
    dwm_pretrain). Without --model and --tokenizer the rows are read by the network's own tokenizer.

    Attributes:
        weighting: A run of DWM, each of whose snapshots serves for an equal share of the steps; RUN/last, for the last
            of them alone; or a snapshot's own folder (RUN/snapshots/stage-3).
        preset: Defaults that the other flags change: tiny runs anywhere in minutes, on instruction rows or on plain
            text; the others train as the presets of bds_alpaca do.
        seed: Random seed for corpus, model and row order.
        baselines: Whether to train with uniform weights, and on the rows that are not faulty, too.
        top_share: Share of the training rows that selected.jsonl keeps, the heaviest.
    """

    weighting: Annotated[Path | None, tyro.conf.arg(metavar="RUN|SNAPSHOT")] = None
    preset: Literal["tiny", "tiny_text", "llama3_1b_lora", "llama3_8b"] = "tiny"
    seed: int = 0
    baselines: Literal["all", "none"] = "all"
    top_share: float = 0.5
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)
    data: Annotated[TransferData, tyro.conf.OmitArgPrefixes] = field(default_factory=TransferData)
    corpus: TransferCorpus = field(default_factory=TransferCorpus)
    model: Annotated[ModelOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelOptions)
    lora: LoraOptions = field(default_factory=LoraOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    training: Annotated[TrainingSettings, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        check_ranges(self, ("top_share", 0 < self.top_share <= 1, "in (0, 1]"))

    @property
    def text(self) -> TextOptions:
        """The flags of data for plain text."""
        return TextOptions(**{f.name: getattr(self.data, f.name) for f in fields(TextOptions)})

    @property
    def text_corpus(self) -> TextCorpusOptions:
        """The flags of the embedded corpus for plain text."""
        corpus = self.corpus
        return TextCorpusOptions(corpus.rows, corpus.valid, corpus.test, corpus.text_shares)


_TEXT = pretrain_config.PRESETS["tiny"]
PRESETS = {
    "tiny": Transfer(training=dwm_config.PRESETS["tiny"].training),
    "tiny_text": Transfer(
        preset="tiny_text", corpus=TransferCorpus(rows=_TEXT.corpus.rows), training=_TEXT.training
    ),
} | {
    name: Transfer(
        preset=name,
        data=TransferData(**vars(bds_config.PRESETS[name].data)),
        model=bds_config.PRESETS[name].model,
        lora=bds_config.PRESETS[name].lora,
        training=bds_config.PRESETS[name].training,
    )
    for name in ("llama3_1b_lora", "llama3_8b")
}


def presets_for(arguments: Sequence[str]) -> dict[str, Transfer]:
    """The presets, the one first that serves where none is named: that of what the network reads."""
    named = [where for flag, where in pairwise(arguments) if flag == _FLAG]
    named += [flag.removeprefix(f"{_FLAG}=") for flag in arguments if flag.startswith(f"{_FLAG}=")]
    try:
        text = bool(named) and reads_text(read_snapshots(Path(named[-1]))[0])
    except InputError:
        text = False  # what is wrong is said when the network is needed
    return {"tiny_text": PRESETS["tiny_text"], **PRESETS} if text else PRESETS


def reads_text(snapshot: Snapshot) -> bool:
    """Whether a network was trained on plain text; else on instruction rows."""
    return not snapshot.info.template


def check_kind(config: Transfer, snapshot: Snapshot) -> None:
    """Raises InputError for flags that have no meaning for what the network reads."""
    text = reads_text(snapshot)
    idle = ("template", "targets", "truncation") if text else ("separator",)
    plain = PRESETS[config.preset]
    changed = [f"--{name}" for name in idle if getattr(config.data, name) != getattr(plain.data, name)]
    other = "shares" if text else "text_shares"
    if getattr(config.corpus, other) != getattr(plain.corpus, other):
        changed.append(f"--corpus.{other.replace('_', '-')}")
    if changed:
        its, these = ("plain text", "instruction rows") if text else ("instruction rows", "plain text")
        raise InputError(
            f"{changed[0]} is for {these}, and the network of {snapshot.folder} reads {its}: leave the flag out"
        )
