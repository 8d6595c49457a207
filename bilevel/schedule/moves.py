"""What a schedule is made of, and the moves that only look: evaluating, reading weights, keeping a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core.problem import Batch, Weighting
from bilevel.core.tree import PyTree
from bilevel.errors import InputError
from bilevel.schedule.batches import in_turn
from bilevel.schedule.context import Context
from bilevel.schedule.state import RunState

OUTER = "outer"
"""What a move calls the solver's outer variables where it could take a model."""


class Move(ABC):
    """One step of a schedule, a frozen dataclass.

    `reads` and `writes` name parts of the state as `kind:name` (`model:current`, `data:pool`, `signal:loss`,
    `set:chosen`, `result:test`, `solver`), so that a schedule is checked before it runs.
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
        """The state after the move.

        The move may take the arrays of the solver's state for its own (`jax.jit` donates them): whoever runs it goes on
        with what it returns.

        Raises:
            Stopped: the run was asked to stop, `context.saver.stopping()`. Moves that take long look at it as they go;
                the state that they raise it with is saved, and `run` begins from it when the run is continued.
        """

    def check(self, state: RunState, context: Context) -> RunState:
        """What can be known of the state after the move before anything runs: all but what it writes.

        Moves that can tell more in advance look at the state here, too, and refuse what will not do.

        Args:
            state: what is known of the state before the move. What an earlier move will write is not there.
            context: what it runs with.

        Raises:
            InputError, ValueError: the move could not run.
        """
        return state.without(self.writes)


@runtime_checkable
class Evaluation(Protocol):
    """A task that `Evaluate` may put to a model; `bilevel.evaluation` has them."""

    @property
    def name(self) -> str:
        """What its result is called."""

    def check(self, context: Context) -> None:
        """Raises InputError where the model cannot be asked."""

    def evaluate(self, params: PyTree, context: Context, pause: Callable[[], None]) -> Mapping[str, float]:
        """The task's numbers by name.

        Args:
            params: of the model.
            context: what the run is run with.
            pause: called between batches; raises where the run was asked to stop.
        """


@dataclass(frozen=True)
class Evaluate(Move):
    """Measures a model: on a data set by loss and exact match, and by tasks.

    Of a data set it takes the mean row loss in nats a token and the share of exact matches (teacher-forced); a model
    that cannot say what matches is measured by its loss alone. Each task gives a result of its own name.

    Attributes:
        over: which data set; "" for none.
        model: which model.
        into: the data set's result's name; by default the data set's.
        tasks: what else is asked, from `bilevel.evaluation`.
    """

    over: str = "test"
    model: str = "current"
    into: str = ""
    tasks: tuple[Evaluation, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"model:{self.model}", *((f"data:{self.over}",) if self.over else ()))

    @property
    def writes(self) -> tuple[str, ...]:
        return tuple(f"result:{name}" for name in self._names)

    @property
    def _names(self) -> list[str]:
        return [*((self.into or self.over,) if self.over else ()), *(task.name for task in self.tasks)]

    def check(self, state: RunState, context: Context) -> RunState:
        twice = [name for name in self._names if self._names.count(name) > 1]
        if twice:
            raise ValueError(
                f"two evaluations are called {twice[0]!r}: their results need names of their own"
            )
        for task in self.tasks:
            task.check(context)
        return super().check(state, context)

    def run(self, state: RunState, context: Context) -> RunState:
        params = state.models[self.model]
        measured = self._measured(state, context) if self.over else state
        for task in self.tasks:
            found = task.evaluate(params, context, lambda: context.stop_when_asked(state))
            measured = measured.with_result(task.name, found)
        return measured

    def _measured(self, state: RunState, context: Context) -> RunState:
        params, rows = state.models[self.model], state.data[self.over]
        evaluate = context.model.evaluate
        found: dict[str, float] = {"loss": 0.0} | ({} if evaluate is None else {"exact_match": 0.0})
        measure = context.kept.compiled(context.model.first_order if evaluate is None else evaluate)
        for ids, batch in rows_in_turn(rows, state, context):
            measured = context.layout.gather(measure(params, batch))
            losses, matched = (measured, None) if evaluate is None else measured
            found["loss"] += float(np.sum(np.asarray(losses.means, np.float64)[ids >= 0]))
            if matched is not None:
                found["exact_match"] += int(np.sum(matched[ids >= 0]))
        return state.with_result(
            self.into or self.over, {name: total / len(rows) for name, total in found.items()}
        )


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
        solver, rows = state.solver, state.data[self.over]
        weigh = context.kept.compiled(self.weighting.weights)
        row_losses = context.kept.compiled(context.model.first_order) if self.weighting.needs_losses else None
        values = np.full(len(rows), np.nan, np.float32)

        def seen() -> Iterator[tuple[np.ndarray, PyTree]]:
            for ids, batch in rows_in_turn(rows, state, context):
                losses = None if row_losses is None else row_losses(state.models["current"], batch)
                yield ids, jax.tree.map(lambda x: x[None], (batch, losses))

        batches: Iterable[tuple[np.ndarray, PyTree]] = seen()
        if self.as_one_batch:
            all_ids, parts = zip(*batches, strict=True)
            batches = [(np.concatenate(all_ids), jax.tree.map(lambda *x: jnp.concatenate(x), *parts))]
        for ids, (batch, losses) in batches:
            found = context.layout.gather(weigh(solver.outer.inner, solver.memory, batch, losses))
            values[ids[ids >= 0]] = np.ravel(found)[ids >= 0]
        return state.with_signal(self.into, values, self.over)


Results = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Keep(Move):
    """Keeps a model as it is now under another name: the best so far, a network at the end of a stage.

    Attributes:
        into: the name.
        model: which model; `outer` for the solver's outer variables.
        when: `(results now, results when one was last kept) -> bool`, see `lower`; None for always. The second is None
            the first time.
    """

    into: str
    model: str = "current"
    when: Callable[[Results, Results | None], bool] | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        return ("solver",) if self.model == OUTER else (f"model:{self.model}",)

    @property
    def writes(self) -> tuple[str, ...]:
        return (f"model:{self.into}",)

    def run(self, state: RunState, context: Context) -> RunState:
        prefix = f"kept {self.into}: "
        now = {name: found for name, found in state.results.items() if not name.startswith("kept ")}
        before = {
            name.removeprefix(prefix): found
            for name, found in state.results.items()
            if name.startswith(prefix)
        }
        if self.when is not None and self.into in state.models and not self.when(now, before or None):
            return state
        kept = state.solver.outer.inner if self.model == OUTER and state.solver else state.models[self.model]
        results = {**state.results, **{f"{prefix}{name}": found for name, found in now.items()}}
        return replace(state, models={**state.models, self.into: kept}, results=results)


def lower(over: str, number: str = "loss") -> Callable[[Results, Results | None], bool]:
    """For `Keep`: whether a number of an evaluation is lower than when a model was last kept.

    Args:
        over: the result's name.
        number: which of its numbers.
    """

    def is_lower(now: Results, before: Results | None) -> bool:
        return before is None or over not in before or now[over][number] < before[over][number]

    return is_lower


def rows_in_turn(
    rows: object, state: RunState, context: Context, ids: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields rows in turn, until the run is asked to stop; what was found so far is found again."""
    size = context.layout.rounded(context.evaluation_rows)
    for some, batch in in_turn(rows, size, context.layout, context.packing, ids):  # type: ignore[arg-type]
        context.stop_when_asked(state)
        yield some, batch


def needs(function: Callable | None, what: str, move: str) -> Callable:
    """One of the model's functions, for a move that cannot do without.

    Raises:
        InputError: the model does not have it.
    """
    if function is None:
        raise InputError(f"{move} needs the model's {what}, which this model does not have")
    return function
