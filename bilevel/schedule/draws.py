"""Which rows come next: endless draws without replacement, each with a cursor of its own.

A run's state counts how many units (rows, or questions with all their answers) were drawn from each stream so far. What
comes next is a function of that number and of the seed, so that a run resumes at any step in O(1), whatever took the
steps before.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int

from bilevel.data import Dataset, Order, Units

Stream = Literal["lower", "virtual", "upper"]
"""What is drawn for. Steps that are put back draw from a stream of their own: the model in training sees the batches
that it would see without them."""

_BLOCK = 4096
"""Positions of a sequence that are worked out together."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Batches of row ids by number, from a cursor on.

    By steps, batches follow each other across passes: one may hold the last rows of a pass and the first of the next,
    and then, rarely, a row twice. By passes, each pass ends with a batch of what is left, filled up with -1, so that
    every row comes exactly once a pass. Fewer rows than a batch are one pass a batch either way.

    Attributes:
        units: which rows are drawn, and which of them stay together.
        batch: units of a batch.
        seed: of the permutations.
        start: units that were drawn before.
        by_passes: whether batches end with a pass.
    """

    units: Units
    batch: int
    seed: tuple[int, ...]
    start: int = 0
    by_passes: bool = False
    _blocks: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    @property
    def batches_a_pass(self) -> int:
        """Batches in which each unit comes once, the last of them perhaps filled up."""
        return -(-len(self.units) // self.batch)

    def ids(self, number: int) -> Int[np.ndarray, " rows"]:
        """Row ids of a batch, counted from the start; -1 for places that no row takes."""
        order, total = Order(len(self.units), self.seed), len(self.units)
        if self.by_passes or total <= self.batch:
            done = -(-self.start // total) + number // self.batches_a_pass
            first = number % self.batches_a_pass * self.batch
            found = self._drawn(order, done * total + first, min(self.batch, total - first))
        else:
            found = self._drawn(order, self.start + number * self.batch, self.batch)
        rows = np.full((self.batch, self.units.width), -1, np.int64)
        rows[: len(found)] = self.units.rows(found)
        return rows.reshape(-1)

    def _drawn(self, order: Order, start: int, count: int) -> Int[np.ndarray, " count"]:
        """Units at some positions of the sequence, worked out in blocks: the price is by the call."""
        first, last = start // _BLOCK, (start + count - 1) // _BLOCK
        for block in [block for block in self._blocks if not first <= block <= last]:
            del self._blocks[block]
        for block in range(first, last + 1):
            if block not in self._blocks:
                self._blocks[block] = order.take(block * _BLOCK, _BLOCK)
        found = np.concatenate([self._blocks[block] for block in range(first, last + 1)])
        return found[start - first * _BLOCK :][:count]

    def after(self, batches: int) -> int:
        """The cursor after so many batches."""
        total = len(self.units)
        if self.by_passes or total <= self.batch:
            passes, more = divmod(batches, self.batches_a_pass)
            return (-(-self.start // total) + passes) * total + min(more * self.batch, total)
        return self.start + batches * self.batch


def stream_key(stream: Stream, dataset: Dataset, ids: np.ndarray | None) -> str:
    """The name of a cursor: a stream over a data set, or over a set of its rows.

    The rows themselves are in it: rows chosen anew are drawn from their beginning, the same rows go on.
    """
    chosen = (
        "" if ids is None else hashlib.sha256(np.ascontiguousarray(ids, np.int64).tobytes()).hexdigest()[:16]
    )
    return f"{stream}/{dataset.fingerprint}/{chosen}"


def stream_seed(seed: int, stream: Stream) -> tuple[int, ...]:
    """The seed of a stream's permutations."""
    return seed, zlib.crc32(stream.encode())
