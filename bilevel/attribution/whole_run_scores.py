"""Row scores by the derivative of the whole run: what each row's weight does to the trusted loss at its end."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from bilevel.attribution.retraining import Retraining
from bilevel.attribution.token_weights import token_problem
from bilevel.attribution.trusted import Trusted
from bilevel.core import Problem, RowProblem
from bilevel.core.unroll import (
    Budget,
    Footprint,
    Plan,
    ReplayError,
    RunPrograms,
    best_plan,
    differentiate_run,
)
from bilevel.core.unroll import footprint as footprint_of
from bilevel.core.unroll.shelf import DeviceShelf, HostShelf
from bilevel.errors import InputError
from bilevel.storage.run_shelf import DiskJournal, DiskShelf, write_arrays

Queries = Literal["mean", "each"]
_AT_ONCE = 8
"""Trusted rows that are pulled back together: more save little, and each takes a cotangent."""


@dataclass(frozen=True)
class RowScores:
    """What was found of the rows.

    Attributes:
        scores: d (trusted loss) / d w_i: below zero for a row that helps.
        cotangents: norm of the cotangent of the parameters after each step, NaN before the window.
        signals: sum of the absolute scores that each step adds.
        segment_runs: segments that were run in this process.
        tokens: the same as `scores` with respect to the weight of each response token; None where it was not asked for.
    """

    scores: Float[np.ndarray, "queries pool"]
    cotangents: Float[np.ndarray, "queries steps"]
    signals: Float[np.ndarray, "queries steps"]
    segment_runs: int
    tokens: Float[np.ndarray, "queries pool tokens"] | None = None


class WholeRunScores:
    """Scores of one training; its programs are compiled once.

    Args:
        retraining: the training.
        queries: whether the mean of the trusted rows is asked about, or each of them.
        tokens: whether response tokens are scored, too.

    Raises:
        InputError: tokens of rows that have none.
    """

    def __init__(self, retraining: Retraining, queries: Queries = "mean", tokens: bool = False) -> None:
        self.retraining, self.queries, self.tokens = retraining, queries, tokens
        problem: Problem | RowProblem = retraining.problem
        self.outer = retraining.table
        if tokens:
            problem, self.outer = token_problem(retraining)
        self.trusted = Trusted(retraining, self.outer)
        start = retraining.run.start
        self.programs = RunPrograms(
            problem,
            retraining.optimizer,
            out_shardings=retraining.layout.shardings(start),
            queries=queries == "each",
        )

    @property
    def at_once(self) -> int:
        """Queries that are pulled back together."""
        return 1 if self.queries == "mean" else min(_AT_ONCE, len(self.trusted))

    def footprint(self) -> Footprint:
        """What the training weighs.

        Raises:
            InputError: it has no derivative.
        """
        given = self.retraining
        try:
            self.programs.check(self.outer, given.run)
        except ValueError as error:
            raise InputError(str(error)) from error
        return footprint_of(self.programs, self.outer, given.run, self.at_once)

    def plan(self, footprint: Footprint, budget: Budget, last: int | None = None) -> Plan:
        """The plan that a budget allows.

        Raises:
            InputError: it allows none, or the window is longer than the run.
        """
        steps = self.retraining.run.steps
        if last is not None and not 1 <= last <= steps:
            raise InputError(f"--last {last}: the run has {steps} steps")
        try:
            return best_plan(steps, footprint, budget, last)
        except ValueError as error:
            raise InputError(f"{error}: give more with --memory, --host or --disk") from error

    def scores(
        self, plan: Plan, folder: Path, tell: Callable[[str, int], None] = lambda what, segment: None
    ) -> RowScores:
        """The scores of all rows of the pool; killed at any moment, they go on from there.

        Args:
            plan: how they are found.
            folder: for what is kept on the way; empty again in the end.
            tell: see `differentiate_run`.

        Raises:
            InputError: a part of the run came out differently when it was run again.
        """
        groups: list[Sequence[int]] = [()]
        if self.queries == "each":
            rows = range(len(self.trusted))
            groups = [rows[start : start + self.at_once] for start in range(0, len(rows), self.at_once)]
        found = [self._group(plan, folder, group, tell) for group in groups]
        return RowScores(
            np.concatenate([each.scores for each in found]),
            np.concatenate([each.cotangents for each in found]),
            np.concatenate([each.signals for each in found]),
            sum(each.segment_runs for each in found),
            np.concatenate([each.tokens for each in found if each.tokens is not None])
            if self.tokens
            else None,
        )

    def _group(
        self, plan: Plan, folder: Path, rows: Sequence[int], tell: Callable[[str, int], None]
    ) -> RowScores:
        given = self.retraining
        work = folder / f"work-{self._key(plan, rows)}"
        done = folder / f"{work.name}.npz"
        if done.exists():
            with np.load(done) as kept:
                return RowScores(
                    **{name: kept[name] for name in kept if name != "segment_runs"}, segment_runs=0
                )
        shelf = {"device": DeviceShelf, "host": HostShelf}.get(
            plan.place, lambda: DiskShelf(work / "states")
        )()
        # More rows than are left in the last group would compile its programs anew.
        filled = [*rows, *[rows[-1]] * (self.at_once - len(rows))] if rows else []
        try:
            derivative = differentiate_run(
                self.programs,
                self.outer,
                given.run,
                (lambda inner: self.trusted.each(inner, filled)) if rows else self.trusted.mean,
                plan,
                shelf=shelf,
                journal=DiskJournal(work / "progress"),
                tell=tell,
            )
        except ReplayError as error:
            raise InputError(f"{error}; {work} keeps what was reached: remove it to begin again") from error
        kept = len(rows) or 1
        gradient = given.layout.gather(derivative.gradient)
        scores = (gradient if self.queries == "each" else gradient[None])[:kept]
        found = RowScores(
            scores.sum(axis=-1) if self.tokens else scores,
            np.atleast_2d(derivative.cotangents)[:kept],
            np.atleast_2d(derivative.signals)[:kept],
            derivative.segment_runs,
            scores if self.tokens else None,
        )
        if len(rows):
            written = {"scores": found.scores, "cotangents": found.cotangents, "signals": found.signals}
            write_arrays(done, **written, **({} if found.tokens is None else {"tokens": found.tokens}))
        shutil.rmtree(work, ignore_errors=True)
        return found

    def _key(self, plan: Plan, rows: Sequence[int]) -> str:
        """What a derivative that goes on must have in common with the one that began."""
        given = self.retraining
        said = {
            "plan": asdict(plan),
            "rows": list(rows),
            "tokens": self.tokens,
            "pool": given.pool.fingerprint,
            "trusted": given.trusted.fingerprint,
            "weights": hashlib.sha256(given.weights.tobytes()).hexdigest(),
            "model": given.model.fingerprint((given.run.start.iterate, given.model.base)),
            "devices": jax.device_count(),
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
