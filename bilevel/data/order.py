"""Which rows come next: an endless sequence that is cut anywhere, and units of rows that stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, Int64, UInt64

from bilevel.errors import InputError

_ROUNDS = 8
_FEW = 1024
"""Units up to which a permutation is sorted: quicker, and halves of so few bits would mix badly."""

_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Order:
    """Units drawn without replacement: an endless sequence of permutations, each epoch another one.

    >>> order = Order(units=5, seed=0)
    >>> sorted(order.take(0, 5).tolist()), sorted(order.take(5, 5).tolist())
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    >>> order.take(3, 4).tolist() == order.take(0, 9).tolist()[3:7]
    True

    Whoever draws keeps a cursor into the sequence, so that plans with batches of several sizes share one, and a run
    resumes anywhere at once. No unit is dropped at the end of an epoch: a batch may hold the last ones of a permutation
    and the first ones of the next, and then, rarely, a unit twice.

    A permutation is a balanced Feistel network whose values outside the units are sent through it again until they fall
    inside; few units are sorted by a random number each. Nothing is stored, and a draw costs the same among ten units
    and among 2**40.

    Attributes:
        units: how many there are.
        seed: one or several numbers that choose the permutations.

    Raises:
        InputError: no units, or a negative seed.

    References:
        Luby and Rackoff, How to construct pseudorandom permutations from pseudorandom functions, 1988. Black and
        Rogaway, Ciphers with arbitrary finite domains, 2002 (cycle walking).
    """

    units: int
    seed: int | Sequence[int]

    def __post_init__(self) -> None:
        if self.units < 1:
            raise InputError("there are no rows to draw from; give at least one")
        seeds = (self.seed,) if isinstance(self.seed, int | np.integer) else tuple(self.seed)
        for seed in seeds:
            if seed < 0:
                raise InputError(f"seed {seed} is negative; give 0 or more")
        object.__setattr__(self, "seed", int(seeds[0]) if len(seeds) == 1 else tuple(map(int, seeds)))

    def take(self, start: int, count: int) -> Int64[np.ndarray, " count"]:
        """The units at positions `start` to `start + count` of the sequence.

        Args:
            start: how many were drawn before.
            count: how many to draw.
        """
        if min(start, count) < 0:
            raise ValueError(f"a draw of {count} units from position {start}: both must be 0 or more")
        epoch, place = divmod(start, self.units)
        if self.units <= _FEW:
            epochs = np.uint64(epoch) + np.arange((place + count - 1) // self.units + 1, dtype=np.uint64)
            numbers = self._keys(epochs)[:, None] + np.arange(self.units, dtype=np.uint64) * _STEP
            return np.argsort(_mixed(numbers), axis=1, kind="stable").ravel()[place : place + count]
        places = place + np.arange(count, dtype=np.uint64)
        keys = self._keys(np.uint64(epoch) + places // np.uint64(self.units))
        found = self._permuted(places % np.uint64(self.units), keys)
        while (outside := found >= self.units).any():
            found[outside] = self._permuted(found[outside], keys[outside])
        return found.astype(np.int64)

    def _keys(self, epochs: UInt64[np.ndarray, " count"]) -> UInt64[np.ndarray, " count"]:
        return _mixed(self._key ^ _mixed(epochs * _STEP + _STEP))

    @cached_property
    def _key(self) -> np.uint64:
        seeds = (self.seed,) if isinstance(self.seed, int) else tuple(self.seed)
        # Their number stands in front, since a seed sequence takes 1 and (1, 0) for the same.
        return np.random.SeedSequence((len(seeds), *seeds)).generate_state(1, np.uint64)[0]

    def _permuted(
        self, values: UInt64[np.ndarray, " count"], keys: UInt64[np.ndarray, " count"]
    ) -> UInt64[np.ndarray, " count"]:
        # The smallest even number of bits that every unit fits into.
        bits = np.uint64(-(-(self.units - 1).bit_length() // 2))
        mask = (np.uint64(1) << bits) - np.uint64(1)
        left, right = values >> bits, values & mask
        for number in range(1, _ROUNDS + 1):
            # The high bits of the product are the best mixed ones.
            mixed = _mixed(right + keys * np.uint64(2 * number + 1)) >> (np.uint64(64) - bits)
            left, right = right, left ^ mixed
        return left << bits | right


class Units:
    """Units of one or more rows that are drawn together: a question with its answers, say.

    >>> units = Units([7, 2, 5, 4], unit_of=np.array([0, 0, 3, 0, 3, 1, 0, 3]))
    >>> len(units), units.width
    (2, 3)
    >>> units.rows([1, 0]).tolist()
    [[5, -1, -1], [7, 2, 4]]

    Args:
        ids: row ids of a set; a number N stands for all of N rows, which then take no memory.
        unit_of: the unit of every row of the data set, such as its column `question_id`; rows at -1 are units of their
            own. Without it every row is one.

    Raises:
        InputError: no rows.
    """

    def __init__(
        self,
        ids: int | Int[np.ndarray, " rows"] | Sequence[int],
        unit_of: Int[np.ndarray, " all_rows"] | None = None,
    ) -> None:
        every = isinstance(ids, int)
        total = ids if isinstance(ids, int) else len(ids)
        if total < 1:
            raise InputError("there are no rows to draw from; give at least one")
        self._ids: Int64[np.ndarray, " rows"] | None = None
        self._starts: Int64[np.ndarray, " borders"] | None = None
        self._units, self._width = total, 1
        if not every or unit_of is not None:
            self._ids = np.arange(total) if isinstance(ids, int) else np.asarray(ids, np.int64)
        if unit_of is not None and self._ids is not None:
            self._group(self._ids, np.asarray(unit_of)[self._ids])

    def __len__(self) -> int:
        return self._units

    @property
    def width(self) -> int:
        """Most rows of a unit."""
        return self._width

    def rows(self, positions: Int[np.ndarray, " count"] | Sequence[int]) -> Int64[np.ndarray, "count width"]:
        """Row ids of the units at these positions, in the order of the set; -1 where a unit has fewer rows."""
        chosen = np.asarray(positions, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise ValueError(
                f"positions must lie in 0 .. {len(self) - 1}, got {chosen.min()} .. {chosen.max()}"
            )
        if self._ids is None:
            return chosen[:, None]
        if self._starts is None:
            return self._ids[chosen][:, None]
        places = self._starts[chosen][:, None] + np.arange(self.width)
        inside = places < self._starts[chosen + 1][:, None]
        return np.where(inside, self._ids[np.minimum(places, len(self._ids) - 1)], -1)

    def _group(self, ids: Int64[np.ndarray, " rows"], units: Int[np.ndarray, " rows"]) -> None:
        """Puts the rows of a unit side by side; units stand in the order of their first rows."""
        alone = units < 0
        apart = np.where(alone, units.max(initial=0) + 1 + np.arange(len(units)), units)
        _, first, unit = np.unique(apart, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        counts = np.bincount(rank[unit])
        self._ids = ids[np.argsort(rank[unit], kind="stable")]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._units, self._width = len(counts), int(counts.max())


def _mixed(values: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Scrambles each number (the finaliser of MurmurHash3, with the factors of SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        return mixed ^ mixed >> np.uint64(31)
