"""Filters a dataset by a trained weight network: `python -m experiments.dwm_filter --help`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

import models
from bilevel.core import Batch, RowLosses
from bilevel.core.ranges import check_ranges
from bilevel.data import check_vocabulary, load_tokenizer
from bilevel.data.documents import Separator
from bilevel.errors import InputError
from bilevel.layout import Layout, data_layout
from bilevel.model import as_model
from bilevel.report.model_card import MODEL
from bilevel.runs.command import run_command
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.config_file import write_config
from bilevel.runs.filtering import (
    By,
    Filtered,
    choose_rows,
    read_candidates,
    score_candidates,
    write_filtered,
)
from bilevel.runs.run_folder import create_run_folder, write_environment, write_summary
from bilevel.schedule.scoring import check_scores
from bilevel.storage.snapshots import Snapshot, check_tokenizer, read_snapshots
from experiments.loading import REFUSALS

NAME = "dwm_filter"
_MOST_LISTED = 12
"""Sources or faults that are listed by name."""


@dataclass(frozen=True)
class DWMFilter:
    """Scores the rows of a file by a weight network that an earlier run has trained, and keeps the better part.

        python -m experiments.dwm_filter --weighting runs/latest --data pool.jsonl --keep 0.5

    The run folder holds kept.* (the rows that are kept, in the format and columns they came in, with a column `score`),
    weights.parquet (score, weight and verdict of every row), rejected.jsonl (rows that could not be read) and
    summary.json.

    A network that reads each row alone gives a row the same score in any company. One with attention across rows
    compares the rows of a batch, so that scores depend on which rows meet: they meet in batches of the size that the
    network was trained with, in a random order that --seed chooses.

    Attributes:
        weighting: A run of DWM, whose last snapshot is taken, or a snapshot's own folder (RUN/snapshots/stage-3).
        data: Rows to filter, in any form that --train of a run may have; for a network trained on plain text, a .txt
            file or rows with a column text.
        model: A model, for networks that read a row's loss; by default the one that the network's run left, RUN/model.
        keep: Share of the rows that is kept.
        by: top: the highest scores. cdf: each row by a throw of its own, with the probability that it is among the best
            --keep of a random batch. softmax: drawn without replacement in proportion to exp(score / temperature).
        batch: Rows of the batch that `cdf` imagines; the larger, the sharper.
        temperature: Of `softmax`: near 0 the top share, large a uniform sample.
        seed: Of the draws, and of the order in which a network with attention across rows sees them.
        max_length: Most tokens of a row; by default as many as in the network's training.
        separator: What stands between the documents of a text file: blank lines, or <|endoftext|>; auto is the latter
            where the file holds it.
        max_rejected: Largest share of the rows that may be unusable before the run refuses the file.
        run_dir: Where to write; by default runs/dwm_filter-BY-sSEED[-n].
    """

    weighting: Annotated[Path | None, tyro.conf.arg(metavar="RUN|SNAPSHOT")] = None
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER|NAME")] = None
    model: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER|NAME")] = None
    keep: float = 0.5
    by: By = "top"
    batch: int = 64
    temperature: float = 1.0
    seed: int = 0
    max_length: int | None = None
    separator: Separator = "auto"
    max_rejected: float = 0.5
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("keep", 0 < self.keep <= 1, "in (0, 1]"),
            ("batch", self.batch >= 1, "1 or more"),
            ("temperature", self.temperature > 0, "positive"),
            ("seed", self.seed >= 0, "0 or more"),
        )


def run(config: DWMFilter) -> None:
    """Filters, and leaves a run folder."""
    began = time.monotonic()
    if config.weighting is None or config.data is None:
        missing = "--weighting RUN" if config.weighting is None else "--data FILE"
        raise InputError(
            f"there is nothing to filter {'by' if config.weighting is None else ''}: add {missing}"
        )
    enable_compilation_cache()
    snapshot, layout = read_snapshots(config.weighting)[-1], data_layout()
    model = config.model or _left_beside(snapshot)
    check_scores(snapshot, model is not None)
    candidates = read_candidates(
        config.data,
        snapshot,
        separator=config.separator,
        max_length=config.max_length,
        max_rejected=config.max_rejected,
    )
    for notice in candidates.notices:
        print(f"note: {notice}", file=sys.stderr)
    losses = None if model is None else _row_losses(model, snapshot, layout)
    scores = score_candidates(candidates, snapshot, layout, seed=config.seed, row_losses=losses)
    drawn: dict[str, Any] = {"batch": config.batch, "temperature": config.temperature, "seed": config.seed}
    found = Filtered(candidates, snapshot, scores, choose_rows(scores, config.keep, config.by, **drawn))

    folder = create_run_folder("runs", NAME, config.by, config.seed, config.run_dir)
    write_config(folder, config, NAME)
    write_environment(folder)
    file = write_filtered(folder, config.data, found, config.separator)
    told = {"experiment": NAME, "data": config.data, "by": config.by, "seed": config.seed}
    write_summary(folder, told | found.summary | {"seconds": time.monotonic() - began})
    _say(found.summary, snapshot, file)


def _left_beside(snapshot: Snapshot) -> Path | None:
    """The model that a network's run has left, for a network that reads losses."""
    model = snapshot.folder.resolve().parent.parent / MODEL
    reads_losses = snapshot.info.network.scorer(snapshot.info.vocab_size).losses != "none"
    if not reads_losses or not (model / "config.json").exists():
        return None
    print(
        f"note: rows' losses are those under {model}, the model of the network's run (--model)",
        file=sys.stderr,
    )
    return model


def _row_losses(model: Path, snapshot: Snapshot, layout: Layout) -> Callable[[Batch], RowLosses]:
    """Losses of rows under a model that reads the network's tokens."""
    found = models.find(model)
    if found.folder is not None and (found.folder / "tokenizer.json").exists():
        check_tokenizer(snapshot, load_tokenizer(found.folder))
    check_vocabulary(snapshot.tokenizer(), found.config.vocab_size)
    made = as_model(models.load(found, mesh=layout.mesh))
    return partial(made.first_order, made.params)


def _say(summary: Mapping[str, Any], snapshot: Snapshot, file: Path) -> None:
    info = snapshot.info
    if info.network.scorer(info.vocab_size).joint:
        print(
            f"note: this network compares the rows of a batch: rows were scored in random batches of {info.batch_rows} "
            "(--seed), and other batches give other scores",
            file=sys.stderr,
        )
    print(
        f"kept {summary['kept']} of {summary['rows']} rows by the network of stage {info.stage} of {info.stages}"
    )
    for name, shares in summary["kept_share"].items():
        if 1 < len(shares) <= _MOST_LISTED:
            listed = ", ".join(f"{value or 'none'} {share:.1%}" for value, share in shares.items())
            print(f"  kept by {name}: {listed}")
    print(f"kept rows: {file}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, {"default": DWMFilter()}, run, arguments, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
