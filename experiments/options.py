"""Flags that every experiment shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bilevel.data.corpus import Shares


@dataclass(frozen=True)
class DataOptions:
    """Which rows: files of your own, or (without --train) the embedded corpus with planted faults."""

    train: Path | None = None
    """Rows to weight: JSON lines or a JSON array with the columns instruction, input (optional) and output."""
    valid: Path | None = None
    """Trusted rows that the upper level is measured on; needed with --train."""
    test: Path | None = None
    """Held-out rows for the final table; without them the table has no test columns."""
    template: Literal["plain", "alpaca"] = "plain"
    """Wording around instruction and input."""
    max_length: int = 128
    """Most tokens of a row; longer rows lose the start of their prompt first."""
    max_rejected: float = 0.5
    """Largest share of a file's rows that may be unusable before the run refuses it."""


@dataclass(frozen=True)
class CorpusOptions:
    """The embedded corpus, generated from the seed; used without --train."""

    rows: int = 5000
    """Training rows."""
    valid: int = 128
    """Trusted rows."""
    test: int = 512
    """Held-out rows."""
    shares: Shares = field(default_factory=Shares)


@dataclass(frozen=True)
class ModelOptions:
    """Which model: a Hugging Face folder, or (without --model) a small Llama from random weights."""

    model: Path | None = None
    """Hugging Face folder (Llama, Mistral, Qwen 2, Qwen 3, GPT-2) or name on the hub to start from."""
    tokenizer: Path | None = None
    """Folder of a fast tokenizer; by default the model's, or a byte-level BPE trained on the training rows."""
    vocab_size: int = 640
    """Vocabulary of the trained BPE."""
    width: int = 64
    """Residual width of the random model."""
    layers: int = 1
    """Layers of the random model."""
    heads: int = 4
    """Query heads of the random model."""
    kv_heads: int = 2
    """Key/value heads of the random model."""
    mlp_width: int = 256
    """MLP width of the random model."""
