"""Flags that every experiment shares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bilevel.core.estimators import EstimatorName, EstimatorSettings
from bilevel.data.corpus import Shares
from bilevel.data.corpus.text import TextShares
from bilevel.data.documents import Separator
from bilevel.errors import InputError
from bilevel.methods import TrainingSettings
from models import LoraConfig


@dataclass(frozen=True)
class DataOptions:
    """Which rows: files of your own, or (without --train) the embedded corpus with planted faults.

    Attributes:
        train: Rows to weight: a file (.json, .jsonl, .csv, .tsv, .parquet, also .gz), a folder that holds a dataset,
            or OWNER/NAME on the Hugging Face hub; folders and names may go on with :SPLIT or :SUBSET:SPLIT. Columns:
            instruction, input and output; prompt and completion; messages; conversations; and others, see
            bilevel.data.forms.
        valid: Trusted rows that the upper level is measured on; needed with --train. Of a dataset, its split
            validation.
        test: Held-out rows for the final table; without them the table has no test columns. Of a dataset, its split
            test.
        template: Wording around questions and responses: chat is the tokenizer's own, dialogue that of the published
            code, raw adds nothing; auto is chat for conversations if the tokenizer has a chat template, else plain.
        targets: Which responses of a conversation are learned.
        max_length: Most tokens of a row.
        truncation: What rows that are longer lose: the start of their prompt and only then the end of their response;
            everything after the limit; or their place in the run.
        max_rejected: Largest share of a file's rows that may be unusable before the run refuses it.
    """

    train: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER|NAME")] = None
    valid: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER|NAME")] = None
    test: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER|NAME")] = None
    template: Literal["auto", "plain", "alpaca", "dialogue", "chat", "raw"] = "auto"
    targets: Literal["all", "last"] = "all"
    max_length: int = 128
    truncation: Literal["response_first", "keep_start", "drop"] = "response_first"
    max_rejected: float = 0.5


@dataclass(frozen=True)
class CorpusOptions:
    """The embedded corpus, generated from the seed; used without --train.

    Attributes:
        rows: Training rows.
        valid: Trusted rows.
        test: Held-out rows.
    """

    rows: int = 5000
    valid: int = 128
    test: int = 512
    shares: Shares = field(default_factory=Shares)


@dataclass(frozen=True)
class TextOptions:
    """Which text: files of your own, or (without --train) the embedded corpus as text of mixed sources.

    Attributes:
        train: Documents to weight, from one file or several with commas between them, each a source of its own: .txt
            files (documents stand apart by <|endoftext|> or blank lines), or whatever holds rows with a column text.
        valid: Passages whose last word the upper level wants to be told, needed with --train: rows with the columns
            context and continuation (LAMBADA's), or text, whose last word is cut off. Without --test one half of them
            goes to the upper level, the other to the final table.
        test: Passages for the final table, in the same form.
        separator: What stands between the documents of a .txt file; auto is <|endoftext|> where the file holds it, else
            blank lines.
        max_length: Most tokens of a row: longer documents are cut into pieces of about equal length, longer passages
            lose their beginning.
        max_rejected: Largest share of a file's rows that may be unusable before the run refuses it.
    """

    train: Annotated[str | None, tyro.conf.arg(metavar="FILE,FILE,...")] = None
    valid: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    test: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    separator: Separator = "auto"
    max_length: int = 128
    max_rejected: float = 0.5


@dataclass(frozen=True)
class TextCorpusOptions:
    """The embedded corpus as text, generated from the seed; used without --train.

    Attributes:
        rows: Documents.
        valid: Passages for the upper level.
        test: Passages for the final table.
    """

    rows: int = 4000
    valid: int = 128
    test: int = 512
    shares: TextShares = field(default_factory=TextShares)


@dataclass(frozen=True)
class ModelOptions:
    """Which model: a Hugging Face folder, or (without --model) a small Llama from random weights.

    Attributes:
        model: Hugging Face folder (Llama, Mistral, Qwen 2, Qwen 3, GPT-2) or name on the hub to start from.
        tokenizer: Folder of a fast tokenizer; by default the model's, or a byte-level BPE trained on the training
            rows.
        dtype: What the model computes in. What is trained and its optimizer stay float32; parameters under an adapter
            are held in this type.
        attention: exact holds all scores, blockwise 256 x 256 of them a head, fused is the device's own kernel, for
            values and gradients alone; auto takes the kernel where it serves, else blockwise for rows over 512
            tokens.
        remat: What the backward pass keeps of a layer: everything, the results of its linear maps, or its input
            alone.
        shard: Split the parameters over the devices, instead of keeping a copy on each.
        vocab_size: Vocabulary of the trained BPE.
        width: Residual width of the random model.
        layers: Layers of the random model.
        heads: Query heads of the random model.
        kv_heads: Key/value heads of the random model.
        mlp_width: MLP width of the random model.
    """

    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|NAME")] = None
    tokenizer: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "exact", "blockwise", "fused"] = "auto"
    remat: Literal["none", "dots", "full"] = "dots"
    shard: bool = False
    vocab_size: int = 640
    width: int = 64
    layers: int = 1
    heads: int = 4
    kv_heads: int = 2
    mlp_width: int = 256


@dataclass(frozen=True)
class LoraOptions:
    """Train a low-rank adapter beside a frozen model, instead of all parameters (Hu et al., 2021).

    Attributes:
        rank: Rank of a fresh adapter; without one (and without --lora.adapter) all parameters are trained.
        alpha: The adapter's product is scaled by alpha / rank.
        targets: Linear maps that get an adapter: the checkpoint's names, ours (query, value, up ...), or `all`.
        adapter: A PEFT adapter folder to go on from; its rank, alpha and targets stand.
        merge: Write model/ with the adapter added into the model's parameters, instead of the adapter alone.
    """

    rank: int | None = None
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    adapter: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    merge: Annotated[bool, tyro.conf.arg(prefix_name=False), tyro.conf.FlagCreatePairsOff] = False

    @property
    def chosen(self) -> bool:
        """Whether an adapter is trained."""
        return self.rank is not None or self.adapter is not None

    @property
    def settings(self) -> LoraConfig | Path | None:
        """Settings of a fresh adapter, the folder of one to go on from, or None."""
        return self.adapter if self.rank is None else LoraConfig(self.rank, self.alpha, self.targets)

    def __post_init__(self) -> None:
        defaults = type(self).__dataclass_fields__
        given = [n for n in ("alpha", "targets") if getattr(self, n) != defaults[n].default]
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"--lora.rank must be at least 1, not {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"--lora.alpha must be positive, not {self.alpha}")
        if self.rank is not None and self.adapter is not None:
            raise ValueError(
                "--lora.rank is of a fresh adapter, and --lora.adapter has its own: leave one out"
            )
        if given and self.rank is None:
            raise ValueError(f"--lora.{given[0]} is of a fresh adapter: give it a rank with --lora.rank")
        if self.merge and not self.chosen:
            raise ValueError("--merge needs an adapter to merge: give --lora.rank or --lora.adapter")


@dataclass(frozen=True)
class HypergradientOptions(EstimatorSettings):
    """How the derivative of the trusted rows' loss with respect to the weights is estimated."""

    name: Annotated[EstimatorName, tyro.conf.arg(name="")] = "penalty_single"
    """Which estimator; docs/estimators.md says what each costs, assumes and errs by."""


def in_steps(training: TrainingSettings, defaults: TrainingSettings, rows: int) -> TrainingSettings:
    """The settings with epochs turned into steps.

    Args:
        training: from the flags.
        defaults: the preset's. Where flags changed its steps alone, they take the place of its epochs.
        rows: rows of one epoch.

    Raises:
        InputError: flags give both.
    """
    if training.epochs is None or training.steps == defaults.steps:
        return training.over(rows)
    if training.epochs != defaults.epochs:
        raise InputError(
            f"--steps {training.steps} and --epochs {training.epochs:g} say two things: leave one out"
        )
    return replace(training, epochs=None)
