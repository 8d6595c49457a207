"""Which rows a step trains on."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from bilevel.errors import InputError


@dataclass(frozen=True)
class RowOrder:
    """Rows drawn without replacement: each epoch is a fresh permutation, cut into batches.

    The permutations of all epochs form one endless sequence, and step s takes positions s * batch_size
    onwards. No row is dropped at the end of an epoch: a batch may hold the last rows of one permutation and
    the first of the next, and then, rarely, a row twice. A permutation depends on seed and epoch alone, so
    that a run resumes at any step in O(1).

    Args:
        rows: how many rows there are.
        batch_size: rows of a step.
        seed: chooses the permutations.

    Raises:
        InputError: no rows, no batch, a negative seed, or a batch larger than the data.
    """

    rows: int
    batch_size: int
    seed: int
    _permutations: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InputError("there are no rows to draw from; give at least one")
        if self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size} is not positive; give at least 1")
        if self.batch_size > self.rows:
            raise InputError(
                f"batch size {self.batch_size} is larger than the data ({self.rows} rows); "
                f"lower it to at most {self.rows} or add rows"
            )
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative; give 0 or more")

    def indices(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Positions of the rows of a step, a pure function of the step."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        start = step * self.batch_size
        first, offset = divmod(start, self.rows)
        last = (start + self.batch_size - 1) // self.rows
        for epoch in [epoch for epoch in self._permutations if not first <= epoch <= last]:
            del self._permutations[epoch]
        here = self._permutation(first)[offset : offset + self.batch_size]
        return np.concatenate([here, self._permutation(last)[: self.batch_size - len(here)]])

    def epoch(self, step: int) -> float:
        """How often the rows have been passed through before a step."""
        return step * self.batch_size / self.rows

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            self._permutations[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return self._permutations[epoch]
