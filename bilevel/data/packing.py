"""Several rows in one sequence, so that short rows do not pay for the longest one's padding."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from bilevel.data.dataset import Dataset, filler_of
from bilevel.data.encode import EncodedRows
from bilevel.data.rows import Row
from bilevel.errors import InputError

Packing = Literal["auto", "on", "off"]
"""Whether batches hold several rows a sequence; see `arrange_rows`."""

LARGEST_SHARE = 0.9
"""Share of the padded tokens up to which `auto` packs.

The time of a step follows its tokens: on two CPU cores a gradient took 0.74, 0.81 to 0.86 and 0.93 of the padded one's
time at 0.75, 0.84 and 0.94 of its tokens, and 1.07 at all of them, the price of sums over rows that stand anywhere.
"""

_SECOND_SIZE = 0.9
"""Share of one size's tokens up to which two sizes are taken."""


class Placement(NamedTuple):
    """Where the rows of a batch stand."""

    sequence: Int[np.ndarray, " rows"]
    start: Int[np.ndarray, " rows"]
    """Position of each row's first token in its sequence."""
    sequences: int
    """How many sequences are in use."""


def first_fit_decreasing(lengths: Int[np.ndarray, " rows"], capacity: int) -> Placement:
    """Places rows, longest first, each in the first sequence that has room; equal lengths keep their order.

    >>> place = first_fit_decreasing(np.array([3, 5, 2]), capacity=6)
    >>> place.sequence.tolist(), place.start.tolist(), place.sequences
    ([1, 0, 1], [0, 0, 3], 2)

    Never more than 11/9 of the fewest possible sequences, plus one. Rows of no length take no room.

    Args:
        lengths: tokens of each row, none above `capacity`.
        capacity: tokens of a sequence.

    References:
        Johnson, Near-optimal bin packing algorithms, 1973.
    """
    needed = np.asarray(lengths).tolist()
    sequence, start = [0] * len(needed), [0] * len(needed)
    room: list[int] = []
    chosen, before = 0, -1
    # Plain numbers: batches are small, and a call of numpy for each row would cost thirty times as much.
    for row in sorted(range(len(needed)), key=lambda row: -needed[row]):
        if needed[row] == 0:
            break
        # What had no room for a row has none for the next of its length.
        chosen = chosen if needed[row] == before else 0
        while chosen < len(room) and room[chosen] < needed[row]:
            chosen += 1
        if chosen == len(room):
            room.append(capacity)
        sequence[row], start[row] = chosen, capacity - room[chosen]
        room[chosen] -= needed[row]
        before = needed[row]
    return Placement(np.array(sequence, np.int64), np.array(start, np.int64), len(room))


@dataclass(frozen=True)
class PackedRows:
    """Encoded rows whose batches hold several rows a sequence; made by `pack_rows`.

    A batch is as many sequences of `length` tokens as the smallest of a few sizes that holds it, so that hardly
    anything compiles twice. No row is ever left out: a batch of R rows that fits none of the sizes gets R sequences,
    which always suffice.

    Losses are still one a row: `token_row` says whose token it is. A batch may be split over devices along its
    sequences and its rows (`place_batch` does) where the devices divide both: sums over a row's tokens then cross
    devices by themselves under `jax.jit`. Inside `shard_map` they would not, so each device's share of the rows
    must there be packed on its own.

    Attributes:
        encoded: the rows.
        length: tokens of a sequence.
        sequence_counts: numbers of sequences that a batch may have, ascending.
        share: of the padded tokens that packed batches have, on average over those planned for.

    Raises:
        InputError: a row is longer than a sequence.
    """

    encoded: EncodedRows
    length: int
    sequence_counts: tuple[int, ...]
    share: float = 1.0

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

    @property
    def fingerprint(self) -> str:
        """What the rows are, however they are packed."""
        return self.encoded.fingerprint

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many rows there are, and one more than the largest value of each index column."""
        return self.encoded.sizes

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """Further numbers, one a row or one a token, as they are before packing."""
        return self.encoded.columns

    def names(self, indices: Sequence[int] | Int[np.ndarray, " rows"]) -> list[str]:
        """Stable ids of the rows at these positions; "" for -1."""
        return self.encoded.names(indices)

    def batch(self, indices: Int[np.ndarray, "*batches rows"] | Sequence[int]) -> dict[str, np.ndarray]:
        """Packed batches of the rows at these positions; -1 gives a filler row, which has no token at all.

        Leading axes of the positions (lower steps, micro-batches) are packed one by one, all at one size.
        """
        padded = self.encoded.batch(indices)
        row_id = padded["row_id"]
        rows = row_id.shape[-1]
        present = padded["segments"] > 0
        places = [first_fit_decreasing(each, self.length) for each in present.sum(axis=-1).reshape(-1, rows)]
        fullest = max(place.sequences for place in places)
        sequences = next((count for count in self.sequence_counts if count >= fullest), rows)
        first = [
            (number * sequences + place.sequence) * self.length + place.start
            for number, place in enumerate(places)
        ]
        where = (np.reshape(first, (*row_id.shape, 1)) + np.arange(present.shape[-1]))[present]

        def moved(values: np.ndarray, empty: int) -> np.ndarray:
            packed = np.full(len(places) * sequences * self.length, empty, values.dtype)
            packed[where] = values[present]
            return packed.reshape(*row_id.shape[:-1], sequences, self.length)

        token_row = moved(np.broadcast_to(np.arange(rows, dtype=np.int32)[:, None], present.shape), -1)
        columns = {
            name: moved(padded[name], filler_of(name)) if values.ndim > 1 else padded[name]
            for name, values in self.columns.items()
        }
        return {
            "tokens": moved(padded["tokens"], 0),
            "segments": token_row + 1,
            "loss_mask": moved(padded["loss_mask"], False),
            "token_row": token_row,
            "row_id": row_id,
            **columns,
        }


def pack_rows(
    encoded: EncodedRows,
    batches: Iterable[Int[np.ndarray, "*pieces rows"] | Sequence[int]],
    *,
    length: int | None = None,
    multiple: int = 1,
    two_sizes: bool = False,
) -> PackedRows:
    """Plans packing for the batches that a run will see: as many sequences as the fullest of them needs.

    >>> from bilevel.data import PLAIN, encode_rows, train_tokenizer
    >>> rows = [Row(f"a:{n}", "Hi.", "", "Yes." * n) for n in (1, 1, 4)]
    >>> encoded = encode_rows(rows, train_tokenizer(["a"], 259), PLAIN, max_length=32).encoded
    >>> packed = pack_rows(encoded, batches=[[0, 1, 2]])
    >>> encoded.batch([0, 1, 2])["tokens"].shape, packed.batch([0, 1, 2])["tokens"].shape
    ((3, 24), (2, 24))

    An order is a function of the step, so a run can name its batches before it begins:
    `pack_rows(rows, (order.take(step * size, size) for step in range(steps)))`.

    Args:
        encoded: the rows.
        batches: positions of the rows of batches, -1 for fillers, equally many in each; leading axes for pieces that
            are packed one by one, as in `PackedRows.batch`.
        length: tokens of a sequence, by default the rows' padded length.
        multiple: what the number of sequences must be a multiple of: the devices that share a batch.
        two_sizes: whether there may be a smaller size for most batches, for the price of a second compilation; it is
            taken where it leaves out a tenth of the tokens more.

    Raises:
        InputError: a row is longer than a sequence, or there is no batch.
    """
    width = encoded.tokens.shape[1] if length is None else length
    # Built before the batches are counted: it refuses rows that fit nowhere.
    unplanned = PackedRows(encoded, width, ())
    named = np.asarray(list(batches), np.int64)
    if not named.size:
        raise InputError("there is no batch to plan packing for; name the batches that the run will see")
    rows = named.shape[-1]
    lengths = np.append(encoded.lengths, 0)[named].reshape(len(named), -1, rows)
    needed = [max(first_fit_decreasing(piece, width).sequences for piece in pieces) for pieces in lengths]
    rounded = np.maximum(1, -(-np.array(needed) // multiple)) * multiple
    most = int(rounded.max())

    def average(size: int) -> float:
        return float(np.mean(np.where(rounded <= size, size, most)))

    best = min(map(int, np.unique(rounded)), key=average)
    sizes = (best, most) if two_sizes and average(best) <= _SECOND_SIZE * most else (most,)
    return replace(unplanned, sequence_counts=sizes, share=average(sizes[0]) / rows)


def arrange_rows(
    dataset: Dataset,
    batches: Int[np.ndarray, "batches *pieces rows"],
    packing: Packing,
    multiple: int = 1,
    two_sizes: bool = False,
) -> Dataset:
    """The rows packed or padded; both have `batch`, and give the same row losses.

    >>> from bilevel.data import PLAIN, encode_rows, train_tokenizer
    >>> rows = [Row(f"a:{n}", "Hi.", "", "Yes." * n) for n in (1, 1, 4)]
    >>> encoded = encode_rows(rows, train_tokenizer(["a"], 259), PLAIN, max_length=32).encoded
    >>> type(arrange_rows(encoded, np.array([[0, 1, 2]]), "auto")).__name__
    'PackedRows'

    `auto` packs where packed batches hold at most `LARGEST_SHARE` of the padded tokens. Rows without tokens stay as
    they are.

    Args:
        dataset: the rows.
        batches: positions of the rows of batches that the run will see, as in `pack_rows`.
        packing: whether to pack.
        multiple: devices that share a batch.
        two_sizes: as in `pack_rows`.

    Raises:
        InputError: rows without tokens are to be packed.
    """
    if packing == "off" or not (packing == "on" or isinstance(dataset, EncodedRows)):
        return dataset
    if not isinstance(dataset, EncodedRows):
        raise InputError("packing on: rows without tokens cannot share a sequence; leave packing off")
    packed = pack_rows(dataset, batches, multiple=multiple, two_sizes=two_sizes)
    return packed if packing == "on" or packed.share <= LARGEST_SHARE else dataset
