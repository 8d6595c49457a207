"""Filters a dataset by a trained weight network: `python -m experiments.dwm_filter --help`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from bilevel.core import Batch, RowLosses
from bilevel.data import (
    EncodedRows,
    Rejected,
    check_rejected,
    check_vocabulary,
    choose_template,
    encode_documents,
    encode_rows,
    load_tokenizer,
    read_documents,
    read_rows,
    source_of,
    write_rejected,
)
from bilevel.data.documents import END_OF_TEXT, Separator
from bilevel.data.files import ReadRows
from bilevel.data.kept import write_kept, write_kept_text
from bilevel.data.sets import PreparedSets
from bilevel.errors import InputError
from bilevel.layout.devices import AXIS, data_mesh
from bilevel.report.model_card import MODEL
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.config_file import write_config
from bilevel.runs.run_folder import create_run_folder, write_environment, write_summary
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import write_weights
from bilevel.schedule.scoring import check_scores, score_rows
from bilevel.storage.snapshots import Snapshot, check_tokenizer, read_snapshots
from bilevel.weighting.filtering import keep_by_cdf, keep_by_softmax, keep_top
from experiments.command import run_command
from experiments.inputs import inputs_of
from experiments.options import LoraOptions, ModelOptions
from experiments.tuned_model import compute_of, find_model, load_model

NAME = "dwm_filter"

_ROWS_AT_ONCE = 128
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
    by: Literal["top", "cdf", "softmax"] = "top"
    batch: int = 64
    temperature: float = 1.0
    seed: int = 0
    max_length: int | None = None
    separator: Separator = "auto"
    max_rejected: float = 0.5
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None

    def __post_init__(self) -> None:
        for name, inside, allowed in (
            ("keep", 0 < self.keep <= 1, "in (0, 1]"),
            ("batch", self.batch >= 1, "1 or more"),
            ("temperature", self.temperature > 0, "positive"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not inside:
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}")


def run(config: DWMFilter) -> None:
    """Filters, and leaves a run folder."""
    began = time.monotonic()
    if config.weighting is None or config.data is None:
        missing = "--weighting RUN" if config.weighting is None else "--data FILE"
        raise InputError(
            f"there is nothing to filter {'by' if config.weighting is None else ''}: add {missing}"
        )
    enable_compilation_cache()
    snapshot = read_snapshots(config.weighting)[-1]
    model = config.model or _left_beside(snapshot)
    check_scores(snapshot, model is not None)
    read = _read(config, snapshot)
    encoded, rejected, owners = _encoded(config, snapshot, read)
    losses = _row_losses(model, snapshot, encoded) if model is not None else None
    pieces = score_rows(snapshot, encoded, data_mesh(), _ROWS_AT_ONCE, config.seed, losses)
    rows = [read.rows[place] for place in np.unique(owners)]
    scores = _of_documents(pieces, encoded.lengths, owners)
    if not np.all(np.isfinite(scores)):
        bad = rows[int(np.flatnonzero(~np.isfinite(scores))[0])].id
        raise InputError(f"{bad}: its score is not finite; take another snapshot than {snapshot.folder}")
    kept = _kept(config, scores)

    folder = create_run_folder("runs", NAME, config.by, config.seed, config.run_dir)
    write_config(folder, config, NAME)
    write_environment(folder)
    write_rejected(folder / "rejected.jsonl", rejected)
    file = _write(
        config, folder, read, {row.id: float(s) for row, s, k in zip(rows, scores, kept, strict=True) if k}
    )
    columns = {"source": [source_of(row) for row in rows]}
    columns |= {
        name: [row.label(name) for row in rows] for name in sorted({n for row in rows for n in row.labels})
    }
    weights = _weights(snapshot, scores)
    write_weights(
        folder / WEIGHTS,
        {"id": [r.id for r in rows], "weight": weights, "score": scores, "kept": kept, **columns},
    )
    summary = {
        "experiment": NAME,
        "snapshot": str(snapshot.folder),
        "stage": snapshot.info.stage,
        "data": config.data,
        "by": config.by,
        "seed": config.seed,
        "rows": len(rows),
        "kept": int(kept.sum()),
        "rejected": len(rejected),
        "score": {"kept": _quantiles(scores[kept]), "dropped": _quantiles(scores[~kept])},
        "kept_share": {name: _shares(values, kept) for name, values in columns.items()},
        "seconds": time.monotonic() - began,
    }
    write_summary(folder, summary)
    _say(summary, snapshot, file)


def _read(config: DWMFilter, snapshot: Snapshot) -> ReadRows:
    assert config.data is not None
    if snapshot.info.template:
        return read_rows(config.data)
    return read_documents(config.data, config.separator)


def _encoded(
    config: DWMFilter, snapshot: Snapshot, read: ReadRows
) -> tuple[EncodedRows, tuple[Rejected, ...], np.ndarray]:
    """Rows in the network's tokens, those that were left out, and for each encoded row its place among those read."""
    total = len(read.rows) + len(read.rejected)
    check_rejected(read.rejected, total, config.max_rejected)
    tokenizer = snapshot.tokenizer()
    length = config.max_length or snapshot.info.max_length
    if snapshot.info.template:
        template, _ = choose_template(snapshot.info.template, read.rows, tokenizer)
        found = encode_rows(read.rows, tokenizer, template, length)
    else:
        found = encode_documents(read.rows, tokenizer, length)
    rejected = (*read.rejected, *found.rejected)
    check_rejected(rejected, total, config.max_rejected)
    for notice in (*read.notices, found.truncated.warning):
        if notice:
            print(f"note: {notice}", file=sys.stderr)
    if rejected:
        print(f"note: {len(rejected)} of {total} rows rejected; see rejected.jsonl", file=sys.stderr)
    place = {row.id: number for number, row in enumerate(read.rows)}
    # Pieces of a document carry its id, the later ones with a number behind it.
    owners = [
        place[row.id] if row.id in place else place[row.id.rpartition(".")[0]] for row in found.encoded.rows
    ]
    return found.encoded, rejected, np.array(owners)


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


def _row_losses(model: Path, snapshot: Snapshot, encoded: EncodedRows) -> Callable[[Batch], RowLosses]:
    """Losses of rows under a model that reads the network's tokens."""
    options = ModelOptions(model=model)
    found = find_model(options)
    assert found is not None
    folder, architecture = found
    if (folder / "tokenizer.json").exists():
        check_tokenizer(snapshot, load_tokenizer(folder))
    tokenizer, mesh = snapshot.tokenizer(), data_mesh()
    check_vocabulary(tokenizer, architecture.vocab_size)
    tuned = load_model(options, LoraOptions(), found, architecture, mesh, 0)
    compute = compute_of(options, architecture, encoded.tokens.shape[1], mesh.shape[AXIS])
    inputs = inputs_of(PreparedSets({"pool": encoded}, (), ()), tokenizer, tuned, compute)
    return partial(inputs.first_order, inputs.params)


def _of_documents(scores: np.ndarray, lengths: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """The score of each document: the mean over its tokens of its pieces' scores."""
    total, count = np.bincount(owners, scores * lengths), np.bincount(owners, lengths)
    return (total / np.maximum(count, 1))[np.unique(owners)]


def _kept(config: DWMFilter, scores: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(config.seed)
    if config.by == "cdf":
        return keep_by_cdf(scores, config.keep, config.batch, rng)
    if config.by == "softmax":
        return keep_by_softmax(scores, config.keep, config.temperature, rng)
    return keep_top(scores, config.keep)


def _write(config: DWMFilter, folder: Path, read: ReadRows, scores: dict[str, float]) -> Path:
    assert config.data is not None
    kept = [row for row in read.rows if row.id in scores]
    path = Path(config.data)
    if path.suffix.lower() not in (".txt", ".text"):
        return write_kept(config.data, folder, scores)
    marked = config.separator == "endoftext" or (
        config.separator == "auto" and END_OF_TEXT in path.read_text(encoding="utf-8-sig")
    )
    return write_kept_text(kept, folder, marked)


def _weights(snapshot: Snapshot, scores: np.ndarray) -> np.ndarray:
    """What the rows would weigh in training, if all of them stood in one batch."""
    network = snapshot.info.network
    scaled = scores / network.temperature
    centred = scaled - scaled.mean()
    masses = np.exp(scaled - scaled.max()) if network.form == "softmax" else 1 / (1 + np.exp(-centred))
    return network.floor + (1 - network.floor) * len(scores) * masses / masses.sum()


def _quantiles(scores: np.ndarray) -> dict[str, float] | None:
    if not len(scores):
        return None
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    return dict(zip(names, np.quantile(scores, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))


def _shares(values: Sequence[str], kept: np.ndarray) -> dict[str, float]:
    """Share of the rows of each value that is kept."""
    names = np.asarray(values, dtype=object)
    return {str(name): float(kept[names == name].mean()) for name in sorted(set(values))}


def _say(summary: dict, snapshot: Snapshot, file: Path) -> None:
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
    return run_command(NAME, {"default": DWMFilter()}, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
