"""A bank of retrainings: the model trained again at other weights, many times, and what the trusted rows lost."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from bilevel.attribution.retraining import Retraining
from bilevel.attribution.trusted import Trusted
from bilevel.core import Compiled
from bilevel.core.lower_level import lower_level
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.core.unroll.segments import Reached, advance
from bilevel.core.unroll.training_run import settled
from bilevel.storage.run_shelf import write_arrays

_SEGMENT = 64
"""Steps whose batches stand on the devices at once."""


class Retrained(NamedTuple):
    """What trainings ended with.

    Attributes:
        upper: the trusted loss of each.
        rows: each trusted row's own loss.
    """

    upper: Float[np.ndarray, " trainings"]
    rows: Float[np.ndarray, "trainings trusted"]


class Bank:
    """Trains a model again at tables of weights; several at once in one program, each training once and for all.

    Args:
        retraining: the training.
        folder: where results are kept; those of an earlier process are taken as they are.
        at_once: trainings in one program: each takes a model, its optimizer's state, and a batch's activations.
    """

    def __init__(self, retraining: Retraining, folder: Path, at_once: int = 8) -> None:
        self._retraining, self._folder, self._at_once = retraining, folder, at_once
        self._trusted = Trusted(retraining, retraining.table)
        lower, optimizer = lower_level(retraining.problem), retraining.optimizer

        def take(tables: PyTree, starts: Reached, batches: Batch, first: jax.Array) -> Reached:
            def one(table: PyTree, start: Reached) -> Reached:
                return advance(lower, optimizer, table, start, batches, first)

            return jax.vmap(one)(tables, starts)

        self._take = Compiled(take)

    def retrain(
        self, tables: Float[np.ndarray, "trainings pool"], tell: Callable[[int], None] = lambda more: None
    ) -> Retrained:
        """The trainings at these weights.

        Args:
            tables: weights of each.
            tell: told of trainings that are done, how many more.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        found: list[Retrained] = []
        for start in range(0, len(tables), self._at_once):
            some = np.asarray(tables[start : start + self._at_once], np.float64)
            path = self._folder / f"{hashlib.sha256(some.tobytes()).hexdigest()[:16]}.npz"
            if path.exists():
                with np.load(path) as kept:
                    found.append(Retrained(**kept))
            else:
                found.append(self._together(some))
                write_arrays(path, **found[-1]._asdict())
            tell(len(some))
        return Retrained(*map(np.concatenate, zip(*found, strict=True)))

    def _together(self, tables: np.ndarray) -> Retrained:
        given, count = self._retraining, len(tables)
        # Filled up: one program for all.
        filled = np.concatenate([tables, np.repeat(tables[-1:], self._at_once - count, axis=0)])
        outer = given.layout.replicate(jnp.asarray(filled, given.table.dtype))
        at = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (self._at_once, *leaf.shape)), settled(given.run.start)
        )
        for begin in range(0, given.run.steps, _SEGMENT):
            end = min(begin + _SEGMENT, given.run.steps)
            at = self._take(outer, at, given.run.batches(begin, end), jnp.int32(begin))
        upper, rows = self._trusted.values(at.iterate.inner)
        return Retrained(upper[:count], rows[:count])


def random_subsets(rows: int, drop: float, count: int, seed: int) -> Bool[np.ndarray, "subsets pool"]:
    """Random subsets of the rows that are to be left out, all of one size.

    Args:
        rows: how many rows there are.
        drop: share of them that each leaves out; at least one row.
        count: how many subsets.
        seed: of the draws.
    """
    random, size = np.random.default_rng(seed), max(1, round(drop * rows))
    left_out = np.zeros((count, rows), bool)
    for subset in left_out:
        subset[random.choice(rows, size, replace=False)] = True
    return left_out
