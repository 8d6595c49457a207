"""Several rows in one sequence, so that short rows do not pay for the longest one's padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bilevel.data.encode import EncodedRows
from bilevel.data.rows import Row
from bilevel.errors import InputError


class Placement(NamedTuple):
    """Where the rows of a batch stand."""

    sequence: Int[np.ndarray, " rows"]
    start: Int[np.ndarray, " rows"]
    """Position of each row's first token in its sequence."""
    sequences: int
    """How many sequences are in use."""


def first_fit_decreasing(lengths: Int[np.ndarray, " rows"], capacity: int) -> Placement:
    """Places rows, longest first, each in the first sequence that has room; equal lengths keep their order.

    Never more than 11/9 of the fewest possible sequences, plus one. Rows of no length take no room.

    Args:
        lengths: tokens of each row, none above `capacity`.
        capacity: tokens of a sequence.

    References:
        Johnson, Near-optimal bin packing algorithms, 1973.
    """
    sequence, start = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    room = np.full(len(lengths), capacity, np.int64)
    for row in np.argsort(-np.asarray(lengths), kind="stable"):
        chosen = int(np.argmax(room >= lengths[row]))
        sequence[row], start[row] = chosen, capacity - room[chosen]
        room[chosen] -= lengths[row]
    return Placement(sequence, start, int(np.sum(room < capacity)))


@dataclass(frozen=True)
class PackedRows:
    """Encoded rows whose batches hold several rows a sequence; made by `pack_rows`.

    A batch of R rows is always `sequences` x `length` tokens, so that nothing compiles twice. No row is ever
    left out: a batch that needs more sequences is an error.

    Losses are still one a row: `token_row` says whose token it is. A batch may be split over devices along its
    sequences and its rows (`place_batch` does) where the devices divide both: sums over a row's tokens then cross
    devices by themselves under `jax.jit`. Inside `shard_map` they would not, so each device's share of the rows
    must there be packed on its own; likewise each micro-batch.

    Args:
        encoded: the rows.
        length: tokens of a sequence.
        sequences: sequences of a batch.

    Raises:
        InputError: a row is longer than a sequence.
    """

    encoded: EncodedRows
    length: int
    sequences: int

    def __post_init__(self) -> None:
        if len(self.encoded) and self.encoded.lengths.max() > self.length:
            row = int(self.encoded.lengths.argmax())
            raise InputError(
                f"{self.encoded.rows[row].id}: {self.encoded.lengths[row]} tokens do not fit into packed sequences "
                f"of {self.length}; make sequences longer or shorten rows when they are encoded"
            )

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Where the tokens come from; a row's position here is its `row_id`."""
        return self.encoded.rows

    def batch(self, indices: Int[np.ndarray, " batch"] | Sequence[int]) -> dict[str, np.ndarray]:
        """Packed batch of the rows at these positions; -1 gives a filler row, which has no token at all.

        Raises:
            InputError: the rows need more sequences than a batch has.
        """
        padded = self.encoded.batch(indices)
        lengths = padded["segments"].sum(axis=1)
        place = first_fit_decreasing(lengths, self.length)
        if place.sequences > self.sequences:
            raise InputError(
                f"a batch of {len(lengths)} rows (among them {self.rows[int(np.max(indices))].id}) needs "
                f"{place.sequences} packed sequences of {self.length} tokens, but {self.sequences} were planned; "
                f"plan with these rows or give {place.sequences} sequences"
            )
        shape = (self.sequences, self.length)
        packed = {name: np.zeros(shape, padded[name].dtype) for name in ("tokens", "segments", "loss_mask")}
        packed["token_row"] = np.full(shape, -1, np.int32)
        packed["row_id"] = padded["row_id"]
        for row in np.flatnonzero(lengths):
            sequence, start, taken = place.sequence[row], place.start[row], slice(lengths[row])
            where = (sequence, slice(start, start + lengths[row]))
            packed["tokens"][where] = padded["tokens"][row, taken]
            packed["loss_mask"][where] = padded["loss_mask"][row, taken]
            packed["segments"][where] = 1 + packed["segments"][sequence].max()
            packed["token_row"][where] = row
        return packed


def pack_rows(
    encoded: EncodedRows,
    batches: Iterable[Int[np.ndarray, " batch"] | Sequence[int]],
    *,
    length: int | None = None,
    multiple: int = 1,
) -> PackedRows:
    """Plans packing for the batches that a run will see: as many sequences as the fullest of them needs.

    An order is a function of the step, so a run can name all its batches before it begins:
    `pack_rows(rows, (order.indices(step) for step in range(steps)))`. With micro-batches, name those.

    Args:
        encoded: the rows.
        batches: positions of the rows of every batch, -1 for fillers.
        length: tokens of a sequence, by default the rows' padded length.
        multiple: what the number of sequences must be a multiple of: the devices that share a batch.

    Raises:
        InputError: a row is longer than a sequence, or there is no batch.
    """
    width = encoded.tokens.shape[1] if length is None else length
    # Built before the batches are counted: it refuses rows that fit nowhere.
    unplanned = PackedRows(encoded, width, 0)
    known = np.append(encoded.lengths, 0)
    needed = [first_fit_decreasing(known[np.asarray(batch)], width).sequences for batch in batches]
    if not needed:
        raise InputError("there is no batch to plan packing for; name the batches that the run will see")
    sequences = max(1, -(-max(needed) // multiple)) * multiple
    return replace(unplanned, sequences=sequences)
