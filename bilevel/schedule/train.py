"""The move that trains: solver steps over a row set against a trusted set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import jax
import numpy as np

from bilevel.core.problem import Problem, RowProblem
from bilevel.core.ranges import check_ranges
from bilevel.core.solver import BOTH, Solver, SolverState
from bilevel.data import Dataset
from bilevel.errors import InputError
from bilevel.schedule.batches import Batches, BatchPlan, first_rows, lower_batches, upper_batches
from bilevel.schedule.context import Context, Stopped
from bilevel.schedule.moves import Move
from bilevel.schedule.ownership import apart, copied, free
from bilevel.schedule.programs import compiled_step, compiled_upper_loss
from bilevel.schedule.reports import NonFiniteError as NonFiniteError
from bilevel.schedule.reports import kept_of, numbers_of, stop_when_stuck
from bilevel.schedule.state import Position, RunState, Trained

CONTINUE = "continue"
_MONITORED_ROWS = 128


@dataclass(frozen=True)
class Steps:
    """So many solver steps."""

    count: int

    def __post_init__(self) -> None:
        check_ranges(self, ("count", self.count >= 0, "0 or more"))


@dataclass(frozen=True)
class Passes:
    """So many passes over the rows, each row exactly once in each: the last batch of a pass is filled up.

    Attributes:
        count: how many.
        expected: how many rows there will be, for what is told before they are known; None where nobody can say.
    """

    count: float
    expected: int | None = None

    def __post_init__(self) -> None:
        check_ranges(self, ("count", self.count >= 0, "0 or more"))

    def steps(self, batches_a_pass: int, lower_steps: int) -> int:
        """Solver steps that they take."""
        return ceil(self.count * batches_a_pass / lower_steps)


@dataclass(frozen=True)
class Train(Move):
    """Takes solver steps, from the state that the solver has, or fresh from a model.

    Attributes:
        problem: the bilevel problem that the solver was made for.
        solver: any solver of `bilevel.core.solver`.
        length: how long; of passes, as many steps as they take.
        plan: how batches are cut.
        updates: what moves, "inner", "outer" or a part of it, "outer.NAME"; the rest is frozen. Without "inner" the
            lower steps are put back, and their rows are drawn from a stream of their own.
        outer_every: of all steps of the run, the outer level moves in those that this number divides.
        start: `continue` goes on with the solver's state (and begins it from `current` the first time); the name of a
            model begins anew from that model, with fresh optimizers and fresh outer variables.
        over: the data set of the lower level.
        rows: a set of its rows; None for all.
        upper: the data set of the upper level.
    """

    problem: Problem | RowProblem
    solver: Solver
    length: Steps | Passes
    plan: BatchPlan
    updates: tuple[str, ...] = BOTH
    outer_every: int = 1
    start: str = CONTINUE
    over: str = "pool"
    rows: str | None = None
    upper: str = "validation"

    @property
    def reads(self) -> tuple[str, ...]:
        chosen = () if self.rows is None else (f"set:{self.rows}",)
        return (f"model:{self._begins_from}", f"data:{self.over}", f"data:{self.upper}", *chosen)

    @property
    def writes(self) -> tuple[str, ...]:
        return ("model:current", "solver")

    @property
    def _begins_from(self) -> str:
        return "current" if self.start == CONTINUE else self.start

    def check(self, state: RunState, context: Context) -> RunState:
        """What is known of the state after the move; sizes and settings are looked at before anything runs.

        Raises:
            ValueError: the move would go on with the state of another solver.
            InputError: a batch is larger than its data, or the devices cannot share it; an estimator that does not suit
                the problem or the optimizer; a weighting that was made for other rows.
        """
        if self._continues(state):
            self._check_solver(state)
        over, upper = state.data.get(self.over), state.data.get(self.upper)
        layout, plan = context.layout, self.plan.for_model(context.model.packs).padded
        if upper is not None:
            upper_batches(upper, plan, context.seed, layout).at(0)
        if over is not None:
            ids = None
            if self.rows is not None:  # a set that is still unknown may be as large as the data set
                known = self.rows in state.sets
                ids = state.rows(self.rows, self.over) if known else np.arange(len(over))
            lower_batches(over, ids, plan, context.seed, layout).at(0)
            self._check_tables(state, over)
        return replace(super().check(state, context), trained=Trained(self.solver, self.over))

    def _check_tables(self, state: RunState, over: Dataset) -> None:
        model = state.models.get(self._begins_from, state.models.get("base"))
        try:
            jax.eval_shape(
                lambda key, model: self.solver.init(key, model, over.sizes), jax.random.key(0), model
            )
        except ValueError as error:
            raise InputError(str(error)) from error

    def run(self, state: RunState, context: Context) -> RunState:
        lower, upper = self.batches(state, context)
        steps = self.solver_steps(lower)
        # One fixed batch of trusted rows, so that the logged upper losses of all methods compare.
        plan = self.plan.for_model(context.model.packs)
        packing = plan.upper_packing or plan.packing
        size = context.layout.rounded(_MONITORED_ROWS)
        monitored = first_rows(state.data[self.upper], size, context.layout, packing)
        rows = state.data[self.over]
        drawn_from = len(rows) if self.rows is None else len(state.rows(self.rows, self.over))
        solver, state = self._taken(state, context)
        step = compiled_step(self.solver, solver, context)
        upper_value = compiled_upper_loss(self.problem, context)
        begun, first = state, state.position.steps
        before, seen, upper_loss = state.step - first, list(state.pending), state.upper_loss
        bar = context.progress(steps)
        if first:
            bar.advance(first - len(seen), {})
        every = max(1, context.log_every // self.plan.lower_steps)

        def reached(taken: int, *ended: Batches) -> RunState:
            """The state after so many steps of this move."""
            return _reached(begun, solver, taken, self.plan.lower_steps, upper_loss, seen, ended)

        try:
            for taken in range(first + 1, steps + 1):
                number, last = before + taken, taken == steps
                batches = lower.at(taken - 1), upper.at(taken - 1)
                solver, report = step(solver, *batches, updates=self.updates_at(number))
                seen.append(kept_of(report))
                logs = number % every == 0 or last
                stops = context.layout.agree(context.saver.stopping()) and not last
                saves = not stops and not last and context.layout.agree(context.saver.due(number))
                if not (logs or stops or saves):
                    continue
                upper_loss = float(upper_value(solver.outer.inner, solver.inner.inner, monitored))
                if logs:
                    seen = context.layout.gather(seen)
                    stop_when_stuck(int(solver.skipped_in_a_row), seen, rows, context.patience)
                    numbers = numbers_of(seen, drawn_from if self._moves_weights else None)
                    numbers |= {"upper_loss": upper_loss, "skipped_steps": int(solver.skipped)}
                    context.log(begun.lower_steps + (taken - first) * self.plan.lower_steps, numbers)
                    bar.advance(len(seen), {"lower": numbers["lower_loss"], "upper": upper_loss})
                    seen = []
                if stops:
                    raise Stopped(reached(taken))
                if saves:
                    context.saver.save(reached(taken))
        finally:
            bar.close()
        return reached(steps, lower, upper)

    @property
    def _moves_weights(self) -> bool:
        return any(part.startswith("outer") for part in self.updates)

    @property
    def planned_lower_steps(self) -> int:
        """Lower steps, where they are known in advance; else 0, for passes depend on the rows."""
        if isinstance(self.length, Steps):
            return self.length.count * self.plan.lower_steps
        rows = self.length.expected or 0
        return self.length.steps(ceil(rows / self.plan.rows), self.plan.lower_steps) * self.plan.lower_steps

    def updates_at(self, number: int) -> tuple[str, ...]:
        """What moves in the step of this number, counted over the run."""
        return self.updates if number % self.outer_every == 0 else ("inner",)

    def batches(self, state: RunState, context: Context) -> tuple[Batches, Batches]:
        """The batches of both levels, by the number of the step counted from where the cursors stand."""
        over, upper = state.data[self.over], state.data[self.upper]
        ids = None if self.rows is None else state.rows(self.rows, self.over)
        plan = self.plan.for_model(context.model.packs)

        def start(key: str) -> int:
            return state.drawn.get(key, 0)

        lower = lower_batches(
            over,
            ids,
            plan,
            context.seed,
            context.layout,
            start=start,
            stream="lower" if "inner" in self.updates else "virtual",
            by_passes=isinstance(self.length, Passes),
            keep=context.kept.get,
        )
        return lower, upper_batches(
            upper, plan, context.seed, context.layout, start=start, keep=context.kept.get
        )

    def solver_steps(self, lower: Batches) -> int:
        """How many solver steps it takes on batches as `batches` gives them."""
        if isinstance(self.length, Steps):
            return self.length.count
        return self.length.steps(lower.drawn.batches_a_pass, self.plan.lower_steps)

    def _taken(self, state: RunState, context: Context) -> tuple[SolverState, RunState]:
        """The solver's state to begin with, and the run's without it: its arrays are donated to the first step.

        Arrays that models share with it are copied; no others are, so that nothing stands in memory twice.
        """
        rest = {name: model for name, model in state.models.items() if name != "current"}
        if self._continues(state):
            self._check_solver(state)
            solver = apart(state.solver, rest)
        else:
            kept = {**rest, self._begins_from: state.models[self._begins_from]}
            free(state.solver, kept)  # before the new state takes memory
            key = jax.random.fold_in(jax.random.key(context.seed), state.round)
            begun = self.solver.init(key, kept[self._begins_from], state.data[self.over].sizes)
            solver = context.layout.replicate(copied(begun))
        return solver, replace(state, models=rest, solver=None, trained=Trained(self.solver, self.over))

    def _continues(self, state: RunState) -> bool:
        begun = state.solver is not None or state.trained is not None
        return begun and (self.start == CONTINUE or state.position.steps > 0)

    def _check_solver(self, state: RunState) -> None:
        if state.trained is None or state.trained.solver is self.solver:
            return
        raise ValueError(
            "Train(start='continue') goes on with the state of another solver: give both moves the same solver, or "
            "begin anew from a model with start='current'"
        )


def _reached(
    begun: RunState,
    solver: SolverState,
    taken: int,
    lower_steps: int,
    upper_loss: float | None,
    seen: list[Any],
    ended: tuple[Batches, ...] = (),
) -> RunState:
    """The state that a move continued from `begun` has reached when it has taken so many steps in all."""
    more = taken - begun.position.steps
    position: Position = begun.position._replace(steps=taken)
    return replace(
        begun,
        models={**begun.models, "current": solver.inner.inner},
        solver=solver,
        # Cursors move when a move ends: in mid-move its steps say how far it is.
        drawn={**begun.drawn, **{batches.key: batches.cursor(taken) for batches in ended}},
        step=begun.step + more,
        lower_steps=begun.lower_steps + more * lower_steps,
        position=position,
        upper_loss=upper_loss,
        pending=tuple(seen),
    )
