"""Flags about running, the same for every experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from bilevel.storage.checkpoints import CheckpointOptions
from bilevel.storage.plain import FLAG_ONLY


@dataclass(frozen=True)
class RunOptions:
    """Where to write, and how to begin; nothing in here changes what comes out."""

    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = field(default=None, metadata=FLAG_ONLY)
    """Where to write; by default runs/EXPERIMENT-PRESET-sSEED[-n], and runs/latest points to it."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = field(default=None, metadata=FLAG_ONLY)
    """A config.yaml that a run left, or its folder: run it again. Other flags change what it says."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = field(default=None, metadata=FLAG_ONLY)
    """The folder of a run that was stopped or killed: continue it to the same end. No other flag is needed."""
    wandb: Annotated[str | None, tyro.conf.arg(metavar="PROJECT")] = None
    """Send what is measured to this project of Weights & Biases, too (pip install wandb; WANDB_MODE=offline keeps it in
    the run folder)."""
    checkpoints: CheckpointOptions = field(default_factory=CheckpointOptions)
