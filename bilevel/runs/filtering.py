"""Filtering a source of rows by a trained weight network: read, score, keep, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch
from bilevel.data import (
    EncodedRows,
    ReadRows,
    Rejected,
    Row,
    check_rejected,
    choose_template,
    encode_documents,
    encode_rows,
    read_documents,
    read_rows,
    source_of,
    write_rejected,
)
from bilevel.data.documents import END_OF_TEXT, Separator
from bilevel.data.kept import write_kept, write_kept_text
from bilevel.errors import InputError
from bilevel.layout import Layout
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import write_weights
from bilevel.schedule.scoring import score_rows
from bilevel.storage.snapshots import Snapshot
from bilevel.weighting.filtering import keep_by_cdf, keep_by_softmax, keep_top

By = Literal["top", "cdf", "softmax"]
_ROWS_AT_ONCE = 128


class Candidates(NamedTuple):
    """Rows to filter, as they were read and in a network's tokens.

    Attributes:
        read: what the source holds.
        encoded: rows, or pieces of documents, in the network's tokens.
        owners: for each encoded row its place among those read.
        rejected: rows that were left out.
        notices: lines for the user.
    """

    read: ReadRows
    encoded: EncodedRows
    owners: Int[np.ndarray, " encoded"]
    rejected: tuple[Rejected, ...]
    notices: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """The rows that can be scored."""
        return [self.read.rows[place] for place in np.unique(self.owners)]


@dataclass(frozen=True)
class Filtered:
    """Rows with their scores and what became of them.

    Attributes:
        candidates: the rows.
        snapshot: the network.
        scores: of each row, higher being better.
        kept: whether each row is kept.
    """

    candidates: Candidates
    snapshot: Snapshot
    scores: Float[np.ndarray, " rows"]
    kept: Bool[np.ndarray, " rows"]

    @property
    def weights(self) -> Float[np.ndarray, " rows"]:
        """What the rows would weigh in training, if all of them stood in one batch."""
        network = self.snapshot.info.network
        scaled = self.scores / network.temperature
        centred = scaled - scaled.mean()
        masses = np.exp(scaled - scaled.max()) if network.form == "softmax" else 1 / (1 + np.exp(-centred))
        return network.floor + (1 - network.floor) * len(self.scores) * masses / masses.sum()

    @property
    def columns(self) -> dict[str, list[str]]:
        """Source and labels of each row."""
        rows = self.candidates.rows
        names = sorted({name for row in rows for name in row.labels})
        return {"source": [source_of(row) for row in rows]} | {
            name: [row.label(name) for row in rows] for name in names
        }

    @property
    def summary(self) -> dict[str, Any]:
        """What of it goes into a run's summary."""
        return {
            "snapshot": str(self.snapshot.folder),
            "stage": self.snapshot.info.stage,
            "rows": len(self.scores),
            "kept": int(self.kept.sum()),
            "rejected": len(self.candidates.rejected),
            "score": {
                name: _quantiles(self.scores[chosen])
                for name, chosen in (("kept", self.kept), ("dropped", ~self.kept))
            },
            "kept_share": {name: _shares(values, self.kept) for name, values in self.columns.items()},
        }


def read_candidates(
    source: str,
    snapshot: Snapshot,
    *,
    separator: Separator = "auto",
    max_length: int | None = None,
    max_rejected: float = 0.5,
) -> Candidates:
    """Reads rows as the network of a snapshot read those that it was trained on.

    Args:
        source: a file, folder or name of rows; for a network of plain text, of documents.
        snapshot: the network.
        separator: between documents.
        max_length: the most tokens of a row; by default as in the network's training.
        max_rejected: largest share of the rows that may be unusable.

    Raises:
        InputError: the source cannot be read, or too few rows of it can be used.
    """
    info = snapshot.info
    read = read_rows(source) if info.template else read_documents(source, separator)
    total = len(read.rows) + len(read.rejected)
    check_rejected(read.rejected, total, max_rejected)
    tokenizer, length = snapshot.tokenizer(), max_length or info.max_length
    if info.template:
        template, _ = choose_template(info.template, read.rows, tokenizer)
        found = encode_rows(read.rows, tokenizer, template, length)
    else:
        found = encode_documents(read.rows, tokenizer, length)
    rejected = (*read.rejected, *found.rejected)
    check_rejected(rejected, total, max_rejected)
    lost = f"{len(rejected)} of {total} rows rejected; see rejected.jsonl" if rejected else ""
    notices = tuple(line for line in (*read.notices, found.truncated.warning, lost) if line)
    place = {row.id: number for number, row in enumerate(read.rows)}
    # Pieces of a document carry its id, the later ones with a number behind it.
    owners = [
        place[row.id] if row.id in place else place[row.id.rpartition(".")[0]] for row in found.encoded.rows
    ]
    return Candidates(read, found.encoded, np.array(owners), rejected, notices)


def score_candidates(
    candidates: Candidates,
    snapshot: Snapshot,
    layout: Layout,
    *,
    seed: int = 0,
    row_losses: Callable[[Batch], RowLosses] | None = None,
) -> Float[np.ndarray, " rows"]:
    """Scores rows, higher being better; of a document the mean over its tokens of its pieces' scores.

    Args:
        candidates: the rows.
        snapshot: the network.
        layout: the devices.
        seed: of the order in which a network with attention across rows sees them.
        row_losses: of a model, for a network that reads them.

    Raises:
        InputError: the network reads losses, and there is no model; or a score is not finite.
    """
    pieces = score_rows(snapshot, candidates.encoded, layout, _ROWS_AT_ONCE, seed, row_losses)
    lengths, owners = candidates.encoded.lengths, candidates.owners
    total, count = np.bincount(owners, pieces * lengths), np.bincount(owners, lengths)
    scores = (total / np.maximum(count, 1))[np.unique(owners)]
    if not np.all(np.isfinite(scores)):
        bad = candidates.rows[int(np.flatnonzero(~np.isfinite(scores))[0])].id
        raise InputError(f"{bad}: its score is not finite; take another snapshot than {snapshot.folder}")
    return scores


def choose_rows(
    scores: Float[np.ndarray, " rows"],
    keep: float,
    by: By = "top",
    *,
    batch: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> Bool[np.ndarray, " rows"]:
    """Which rows are kept.

    >>> choose_rows(np.array([3.0, 1.0, 2.0, 0.0]), keep=0.5)
    array([ True, False,  True, False])

    Args:
        scores: of the rows.
        keep: share that is kept, in (0, 1].
        by: the highest scores (`top`), or draws by `bilevel.weighting.filtering`'s `cdf` or `softmax`.
        batch: of `cdf`.
        temperature: of `softmax`.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    if by == "cdf":
        return keep_by_cdf(scores, keep, batch, rng)
    if by == "softmax":
        return keep_by_softmax(scores, keep, temperature, rng)
    return keep_top(scores, keep)


def write_filtered(folder: Path, source: str, found: Filtered, separator: Separator = "auto") -> Path:
    """Writes `kept.*`, `weights.parquet` and `rejected.jsonl`.

    Args:
        folder: where.
        source: what the rows were read from.
        found: the rows.
        separator: between documents.

    Returns:
        The file of the kept rows, in the source's format and columns with a column `score`.
    """
    rows, read = found.candidates.rows, found.candidates.read
    write_rejected(folder / "rejected.jsonl", found.candidates.rejected)
    columns: dict[str, Any] = {"id": [row.id for row in rows], "weight": found.weights, "score": found.scores}
    write_weights(folder / WEIGHTS, {**columns, "kept": found.kept, **found.columns})
    scores = {row.id: float(s) for row, s, k in zip(rows, found.scores, found.kept, strict=True) if k}
    path = Path(source)
    if path.suffix.lower() not in (".txt", ".text"):
        return write_kept(source, folder, scores)
    marked = separator == "endoftext" or (
        separator == "auto" and END_OF_TEXT in path.read_text(encoding="utf-8-sig")
    )
    return write_kept_text([row for row in read.rows if row.id in scores], folder, marked)


def _quantiles(scores: np.ndarray) -> Mapping[str, float] | None:
    if not len(scores):
        return None
    names = ("lowest", "quarter", "median", "three_quarters", "highest")
    return dict(zip(names, np.quantile(scores, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))


def _shares(values: Sequence[str], kept: np.ndarray) -> dict[str, float]:
    """Share of the rows of each value that is kept."""
    names = np.asarray(values, dtype=object)
    return {str(name): float(kept[names == name].mean()) for name in sorted(set(values))}
