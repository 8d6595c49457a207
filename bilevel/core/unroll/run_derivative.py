"""The derivative of the upper loss after a whole training run, with respect to the outer variables.

    s_{t+1} = step_t(s_t, outer),   s = (parameters, optimizer state)        the run
    A_T = d upper / d s_T,   A_t = (d step_t / d s_t)^T A_{t+1}              backwards
    d upper / d outer = sum over t of (d step_t / d outer)^T A_{t+1}

It is exact for the run that is given: this seed, this order, this length. Each step costs one vjp of the optax chain
and one jvp of the inner gradient (`mixed`), and nothing is taped. A host loop takes segments of steps by two compiled
functions; the states that they begin from are kept, or reached again, as a `Plan` says (`replay`), and every state
that is reached again is compared with the first time, bit by bit.

References:
    Engstrom et al., Optimizing ML Training with Metagradient Descent, 2025 (REPLAY).
    Ilyas and Engstrom, MAGIC: Near-Optimal Data Attribution for Deep Learning, 2025.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bilevel.core.lower_steps import Iterate, LowerStep
from bilevel.core.optimizer_step import smooth_part
from bilevel.core.tree import PyTree
from bilevel.core.unroll.mixed import without_moments
from bilevel.core.unroll.plan import Plan
from bilevel.core.unroll.replay import next_start
from bilevel.core.unroll.segments import Pulled, Reached, Recorded
from bilevel.core.unroll.shelf import DeviceShelf, Journal, Progress, Shelf
from bilevel.core.unroll.training_run import RunPrograms, TrainingRun, settled

_KINDS = ("start", "records")


class ReplayError(ValueError):
    """A part of the run came out differently when it was run again, so that its derivative would be of no run."""


class Above(NamedTuple):
    """The derivative of the upper loss at the run's end; with queries, all arrays have their axis first.

    Attributes:
        outer: with respect to the outer variables that it reads directly.
        inner: with respect to the inner variables.
    """

    outer: PyTree
    inner: PyTree


class RunDerivative(NamedTuple):
    """What the derivative of a run found.

    Attributes:
        gradient: with respect to the outer variables, outer penalties not included.
        cotangents: norm of the cotangent of the inner variables after each step, NaN before the window.
        signals: sum of the absolute signal of each step, likewise; see `Trace`.
        segment_runs: segments that were run in this process.
    """

    gradient: PyTree
    cotangents: Float[np.ndarray, "*queries steps"]
    signals: Float[np.ndarray, "*queries steps"]
    segment_runs: int

    @property
    def finite(self) -> bool:
        """Whether no number of the gradient is NaN or infinite."""
        return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(jax.device_get(self.gradient)))


def differentiate_run(
    programs: RunPrograms,
    outer: PyTree,
    run: TrainingRun,
    above: Callable[[PyTree], Above],
    plan: Plan,
    *,
    shelf: Shelf | None = None,
    journal: Journal | None = None,
    tell: Callable[[str, int], None] = lambda what, segment: None,
) -> RunDerivative:
    """The derivative of the upper loss after a run.

    With a shelf on disk and a journal it can be killed at any moment and called again with the same arguments: it goes
    on from there, to the same bits.

    Args:
        programs: of the run's problem and optimizer.
        outer: outer variables, at which the whole run trains.
        run: the run.
        above: from the inner variables at its end to the upper loss's derivative.
        plan: what is kept, and how long segments are.
        shelf: where it is kept; None for the devices.
        journal: keeps progress; None for none.
        tell: told of what is done, `sweep`, `replay` or `pull back`, and of which segment, when it is done.

    Raises:
        ReplayError: a state came out differently when it was reached again.
        ValueError: the optimizer or the types of the inner variables allow no derivative; the plan is of another
            number of steps.
    """
    if plan.steps != run.steps:
        raise ValueError(f"the plan is of {plan.steps} steps, the run of {run.steps}")
    programs.check(outer, run)
    shelf = DeviceShelf() if shelf is None else shelf
    return _Walk(programs, outer, run, above, plan, shelf, journal, tell).backwards()


class _Walk:
    """One derivative under way."""

    def __init__(
        self,
        programs: RunPrograms,
        outer: PyTree,
        run: TrainingRun,
        above: Callable[[PyTree], Above],
        plan: Plan,
        shelf: Shelf,
        journal: Journal | None,
        tell: Callable[[str, int], None],
    ) -> None:
        self.programs, self.outer, self.run, self.above = programs, outer, run, above
        self.plan, self.shelf, self.journal, self.tell = plan, shelf, journal, tell
        self.start = settled(run.start)
        self.digests: dict[int, str] = {}
        self.left, self.segment_runs = plan.segments, 0
        self.reached: _Backwards | None = None
        if journal is not None:
            like = _Backwards(Pulled(outer, smooth_part(self.start.iterate)), (np.zeros(()), np.zeros(())))
            self._go_on(journal.read(like))

    def backwards(self) -> RunDerivative:
        while self.left:
            number = self.left - 1
            steps, end = self._recorded(number)
            at = self.reached
            if at is None:
                assert end is not None  # nothing is pulled back: the sweep has just reached the run's own end
                at = self._begun(end.iterate)
            del end  # room for what pulls back
            span = self.plan.span(number)
            pulled, seen = self.programs.pull_back(self.outer, steps, self.run.batches(*span), at.pulled)
            traces = tuple(_put(trace, new, *span) for trace, new in zip(at.traces, seen, strict=True))
            self.reached, self.left = _Backwards(pulled, traces), number
            self._write()
            for kind in _KINDS:
                self.shelf.drop(f"{kind}-{number}")
            self.tell("pull back", number)
        assert self.reached is not None  # there is at least one segment
        cotangents, signals = map(np.asarray, self.reached.traces)
        return RunDerivative(self.reached.pulled.gradient, cotangents, signals, self.segment_runs)

    def _recorded(self, number: int) -> tuple[LowerStep, Reached | None]:
        """Records of the segment that is pulled back next, and its end where it was run for them."""
        if self.plan.keeps == "records":
            return self._all_recorded(number)
        starts = self._kept("start")
        at, position = self._nearest(starts)
        # The run's own start takes a place of its own, whether or not it was put on the shelf.
        free = self.plan.starts - len(starts | {0})
        while position < number:
            target = position + next_start(number + 1 - position, max(free, 0))
            for each in range(position, target):
                at = self._take(each, at).end
            position = target
            if free > 0 and position < number:
                self.shelf.put(f"start-{position}", at)
                self._write()
                free -= 1
        found = self._take(number, at)
        return found.steps, found.end

    def _nearest(self, starts: set[int]) -> tuple[Reached, int]:
        """The last start that is kept, with the number of its segment."""
        if starts:
            position = max(starts)
            return self.shelf.get(f"start-{position}", self.start), position
        at = self._first()
        if self.plan.first:
            self.shelf.put("start-0", at)
        return at, 0

    def _all_recorded(self, number: int) -> tuple[LowerStep, Reached | None]:
        kept = self._kept("records")
        if self.reached is not None and number in kept:
            return self.shelf.get(f"records-{number}", self._records_like(number)), None
        # The sweep, or what of it is left to the segments that are not pulled back.
        at = self._first()
        for each in range(number):
            found = self._take(each, at)
            self.shelf.put(f"records-{each}", found.steps)
            at = found.end
        found = self._take(number, at)
        return found.steps, found.end

    def _take(self, number: int, at: Reached) -> Recorded:
        found = self._stretch(*self.plan.span(number), at)
        self.tell("sweep" if self.reached is None else "replay", number)
        return found

    def _first(self) -> Reached:
        """The state before the first step that is differentiated."""
        at = self.start
        for begin, end in self.plan.spans_before:
            at = self._stretch(begin, end, at).end
        return at

    def _stretch(self, begin: int, end: int, at: Reached) -> Recorded:
        found = self.programs.record(self.outer, at, self.run.batches(begin, end), jnp.int32(begin))
        digest = hashlib.sha256(np.asarray(found.bits).tobytes()).hexdigest()[:16]
        if self.digests.setdefault(begin, digest) != digest:
            raise ReplayError(
                f"steps {begin} to {end - 1} came out differently when they were run again: batches or programs are "
                "not the same as the first time, or the device adds up in no fixed order "
                "(XLA_FLAGS=--xla_gpu_deterministic_ops=true)"
            )
        self.segment_runs += 1
        return found

    def _kept(self, what: str) -> set[int]:
        """Numbers of the segments of which something is kept and still wanted."""
        names = (name.rpartition("-") for name in self.shelf.names)
        return {int(number) for kind, _, number in names if kind == what and int(number) < self.left}

    def _begun(self, end: Iterate) -> _Backwards:
        above = self.above(end.inner)
        if self.programs.queries:
            cotangent = jax.vmap(lambda inner: without_moments(inner, end))(above.inner)
        else:
            cotangent = without_moments(above.inner, end)
        shape = jax.tree.leaves(above.inner)[0].shape[: int(self.programs.queries)]
        nothing = np.full((*shape, self.plan.steps), np.nan, np.float32)
        return _Backwards(settled(Pulled(above.outer, cotangent)), (nothing, nothing))

    def _records_like(self, number: int) -> PyTree:
        batches = self.run.batches(*self.plan.span(number))
        return jax.eval_shape(
            lambda start: self.programs.record(self.outer, start, batches, jnp.int32(0)), self.start
        ).steps

    def _go_on(self, progress: Progress | None) -> None:
        if progress is not None:
            self.digests, self.left = dict(progress.digests), progress.left
            self.reached = progress.reached

    def _write(self) -> None:
        if self.journal is not None:
            self.journal.write(Progress(dict(self.digests), self.left, self.reached))


class _Backwards(NamedTuple):
    """What pulling back has reached, and the traces of all steps so far, see `RunDerivative`."""

    pulled: Pulled
    traces: tuple[Any, ...]


def _put(trace: Any, new: Any, begin: int, end: int) -> np.ndarray:
    filled = np.array(trace)
    filled[..., begin:end] = new
    return filled
