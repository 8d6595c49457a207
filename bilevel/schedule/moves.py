"""What a schedule is made of, but for training: scoring rows, reading weights, selecting, evaluating."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core.compiled import Compiled
from bilevel.core.problem import Batch, Weighting
from bilevel.core.tree import PyTree
from bilevel.schedule.batches import in_turn
from bilevel.schedule.state import Context, RunState, Stopped


class Move(ABC):
    """One step of a schedule, a frozen dataclass.

    `reads` and `writes` name parts of the state as `kind:name` (`model:current`, `signal:loss`, `set:chosen`,
    `result:test`, `solver`), so that a schedule is checked before it runs.
    """

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """What must be there before the move runs."""

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """What is there after it."""

    @abstractmethod
    def run(self, state: RunState, context: Context) -> RunState:
        """Returns the state after the move.

        Raises:
            Stopped: the run was asked to stop, `context.saver.stopping`. Moves that take long look at it as they go;
                the state that they raise it with is saved, and `run` begins from it when the run is continued.
        """

    def solver_after(self, solver: PyTree | None, models: Mapping[str, PyTree]) -> PyTree | None:
        """Returns the shapes of the solver's state after the move, given those before it and those of the models.

        A saved state is read back into this structure; only moves that begin a solver change it.
        """
        return solver

    def check(self, context: Context) -> None:  # noqa: B027  (most moves have nothing more to check)
        """Raises InputError for what can be known before anything runs."""


@dataclass(frozen=True)
class Score(Move):
    """Measures the loss of every row of a data set under a model, into a signal.

    Attributes:
        into: the signal's name.
        model: which model.
        over: which data set.
    """

    into: str
    model: str = "current"
    over: str = "pool"

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"model:{self.model}", f"data:{self.over}")

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"signal:{self.into}",)

    def run(self, state: RunState, context: Context) -> RunState:
        row_losses = _compiled(context.row_losses)
        rows = context.data[self.over]
        values = np.zeros(len(rows), np.float32)
        for ids, batch in _all_rows(self.over, state, context):
            found = np.asarray(row_losses(state.models[self.model], batch).means)
            values[ids[ids >= 0]] = found[ids >= 0]
        return state.with_signal(self.into, values)


@dataclass(frozen=True)
class Weigh(Move):
    """Reads the weight of every row of a data set off the solver's outer variables, into a signal.

    Weightings that look at a batch as a whole (a softmax over it) see batches in the order of the data set, or the
    whole data set as the micro-batches of one batch.

    Attributes:
        weighting: the weighting that the solver moves.
        into: the signal's name.
        over: which data set.
        as_one_batch: whether all rows stand in one batch, so that their weights compare exactly.
    """

    weighting: Weighting
    into: str = "weight"
    over: str = "pool"
    as_one_batch: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return ("solver", "model:current", f"data:{self.over}")

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"signal:{self.into}",)

    def run(self, state: RunState, context: Context) -> RunState:
        assert state.solver is not None  # the driver has checked that some Train comes first
        weigh, row_losses = _compiled(self.weighting.weights), _compiled(context.row_losses)
        rows = context.data[self.over]
        values = np.zeros(len(rows), np.float32)

        def seen() -> Iterator[tuple[np.ndarray, PyTree]]:
            for ids, batch in _all_rows(self.over, state, context):
                losses = row_losses(state.models["current"], batch) if self.weighting.needs_losses else None
                yield ids, jax.tree.map(lambda x: x[None], (batch, losses))

        batches: Iterable[tuple[np.ndarray, PyTree]] = seen()
        if self.as_one_batch:
            all_ids, parts = zip(*batches, strict=True)
            batches = [(np.concatenate(all_ids), jax.tree.map(lambda *x: jnp.concatenate(x), *parts))]
        for ids, (batch, losses) in batches:
            found = weigh(state.solver.outer.inner, state.solver.memory, batch, losses)
            values[ids[ids >= 0]] = np.ravel(found)[ids >= 0]
        return state.with_signal(self.into, values)


@dataclass(frozen=True)
class Snapshot(Move):
    """Keeps the outer variables as they are now under a model's name: a network at the end of a stage.

    Attributes:
        into: the name.
    """

    into: str

    @property
    def reads(self) -> tuple[str, ...]:
        return ("solver",)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"model:{self.into}",)

    def run(self, state: RunState, context: Context) -> RunState:
        assert state.solver is not None  # the driver has checked that some Train comes first
        return replace(state, models={**state.models, self.into: state.solver.outer.inner})


@dataclass(frozen=True)
class Select(Move):
    """Chooses rows by a signal, into a row set, best first.

    Attributes:
        signal: the signal's name.
        into: the set's name.
        share: share of the rows that is kept, those of the highest values; at least one row.
    """

    signal: str
    into: str
    share: float

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"signal:{self.signal}",)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"set:{self.into}",)

    def run(self, state: RunState, context: Context) -> RunState:
        values = state.signals[self.signal].values
        kept = max(1, round(self.share * len(values)))
        return state.with_set(self.into, np.argsort(-values, kind="stable")[:kept])


@dataclass(frozen=True)
class Evaluate(Move):
    """Measures a model on a data set: mean row loss in nats a token, share of exact matches (teacher-forced).

    Attributes:
        over: which data set.
        model: which model.
    """

    over: str = "test"
    model: str = "current"

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"model:{self.model}", f"data:{self.over}")

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"result:{self.over}",)

    def run(self, state: RunState, context: Context) -> RunState:
        evaluate = _compiled(context.evaluate)
        total = matches = 0.0
        rows = context.data[self.over]
        for ids, batch in _all_rows(self.over, state, context):
            losses, matched = evaluate(state.models[self.model], batch)
            total += float(np.sum(np.asarray(losses.means, np.float64)[ids >= 0]))
            matches += int(np.sum(np.asarray(matched)[ids >= 0]))
        return state.with_result(self.over, {"loss": total / len(rows), "exact_match": matches / len(rows)})


def _all_rows(name: str, state: RunState, context: Context) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields all rows of a data set in turn, until the run is asked to stop; what was found so far is found again."""
    for ids, batch in in_turn(context.data[name], context.evaluation_rows, context.mesh, context.packing):
        if context.saver.stopping:
            raise Stopped(state)
        yield ids, batch


@lru_cache(maxsize=16)
def _compiled(function: Callable) -> Callable:
    """Returns one compiled function for each function, so that moves share compilations."""
    return Compiled(function)
