"""The move that trains: solver steps over a row set against a trusted set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core.compiled import Compiled
from bilevel.core.hypergradient import Diagnostics
from bilevel.core.problem import Batch, RowProblem
from bilevel.core.solver import BOTH, Level, Solver, SolverState, StepReport
from bilevel.core.tree import PyTree
from bilevel.layout.devices import replicate
from bilevel.schedule.batches import BatchPlan, LowerBatches, UpperBatches, first_rows
from bilevel.schedule.moves import Move
from bilevel.schedule.state import Context, RunState, Stopped
from bilevel.weighting.statistics import effective_sample_size

_MONITORED_ROWS = 128


class NonFiniteError(RuntimeError):
    """Too many steps in a row could not be applied because a loss or gradient was NaN or infinite."""


@dataclass(frozen=True)
class Train(Move):
    """Takes solver steps, from the state that the solver has, or fresh from a model.

    Attributes:
        problem: the bilevel problem that the solver was made for.
        solver: any solver of `bilevel.core.solver`.
        steps: solver steps.
        plan: how batches are cut.
        updates: which levels move; the other is frozen.
        outer_every: of all steps of the run, the outer level moves in those that this number divides.
        start: `continue` goes on with the solver's state (and begins it from `current` the first time); `base`
            begins anew from the base model with fresh optimizers.
        over: the data set of the lower level; its row set of the same name, if there is one, restricts it.
        upper: the data set of the upper level.
    """

    problem: RowProblem
    solver: Solver
    steps: int
    plan: BatchPlan
    updates: tuple[Level, ...] = BOTH
    outer_every: int = 1
    start: Literal["continue", "base"] = "continue"
    over: str = "pool"
    upper: str = "validation"

    @property
    def reads(self) -> tuple[str, ...]:
        return (
            "model:base" if self.start == "base" else "model:current",
            f"data:{self.over}",
            f"data:{self.upper}",
        )

    @property
    def writes(self) -> tuple[str, ...]:
        return ("model:current", "solver")

    def check(self, context: Context) -> None:
        """Raises InputError when a batch is larger than its data, or the devices cannot share it."""
        pool, trusted = context.data[self.over], context.data[self.upper]
        padded = replace(self.plan, packing="off", upper_packing="off")
        LowerBatches(pool, np.arange(len(pool)), padded, 2 * context.seed, context.mesh)(0)
        UpperBatches(trusted, padded, 2 * context.seed + 1, context.mesh)(0)

    def run(self, state: RunState, context: Context) -> RunState:
        pool = context.data[self.over]
        lower_batches, upper_batches = self.batches(state, context)
        # One fixed batch of trusted rows, so that the logged upper losses of all methods compare.
        packing = self.plan.upper_packing or self.plan.packing
        monitored = first_rows(context.data[self.upper], _MONITORED_ROWS, context.mesh, packing)

        solver_state = self._begin(state, context)
        step, upper = _compiled_step(self.solver), _compiled_upper(self.problem)
        before, seen, upper_loss = state.step - state.position.steps, list(state.unlogged), None
        bar = context.progress(self.steps)
        if state.position.steps:
            bar.advance(state.position.steps - len(seen), {})
        try:
            for taken in range(state.position.steps + 1, self.steps + 1):
                number, last = before + taken, taken == self.steps
                solver_state, report = step(
                    solver_state,
                    lower_batches(number - 1),
                    upper_batches(number - 1),
                    updates=self._updates_at(number),
                )
                seen.append(report)
                logs = number % max(1, context.log_every // self.plan.lower_steps) == 0 or last
                stops = context.saver.stopping and not last
                saves = not stops and not last and context.saver.due(number)
                if not (logs or stops or saves):
                    continue
                upper_loss = float(upper(solver_state.outer.inner, solver_state.inner.inner, monitored))
                if logs:
                    reports = jax.device_get(seen)
                    _stop_when_stuck(int(solver_state.skipped_in_a_row), reports, pool.rows, context.patience)
                    numbers = self._numbers(solver_state, reports, upper_loss, len(pool))
                    context.log(number * self.plan.lower_steps, numbers)
                    bar.advance(len(seen), {"lower": numbers["lower_loss"], "upper": upper_loss})
                    seen = []
                if stops:
                    raise Stopped(_reached(state, solver_state, taken, upper_loss, seen))
                if saves:
                    context.saver.save(_reached(state, solver_state, taken, upper_loss, seen))
        finally:
            bar.close()
        return _reached(state, solver_state, self.steps, upper_loss, seen)

    def solver_after(self, solver: PyTree | None, models: Mapping[str, PyTree]) -> PyTree | None:
        if self.start == "continue" and solver is not None:
            return solver
        model = models["base" if self.start == "base" else "current"]
        return jax.eval_shape(self.solver.init, jax.random.key(0), model)

    def seen_at(self, number: int, solver: PyTree, state: RunState, context: Context) -> PyTree:
        """Returns the shapes of what the step of this number reports, given those of the solver's state."""
        lower_batches, upper_batches = self.batches(state, context)
        step = partial(self.solver.step, updates=self._updates_at(number))
        return jax.eval_shape(step, solver, lower_batches(0), upper_batches(0))[1]

    def _updates_at(self, number: int) -> tuple[Level, ...]:
        return self.updates if number % self.outer_every == 0 else ("inner",)

    def batches(self, state: RunState, context: Context) -> tuple[LowerBatches, UpperBatches]:
        """Returns the batches of both levels, by the number of the step."""
        pool, trusted = context.data[self.over], context.data[self.upper]
        ids = state.sets.get(self.over, np.arange(len(pool)))
        return (
            LowerBatches(pool, ids, self.plan, 2 * context.seed, context.mesh),
            UpperBatches(trusted, self.plan, 2 * context.seed + 1, context.mesh),
        )

    def _begin(self, state: RunState, context: Context) -> SolverState:
        continues = self.start == "continue" or state.position.steps > 0
        if continues and state.solver is not None:
            # The state is donated to the first step; callers keep theirs.
            return jax.tree.map(jnp.copy, state.solver)
        model = state.models["base" if self.start == "base" else "current"]
        begun = self.solver.init(jax.random.fold_in(jax.random.key(context.seed), state.round), model)
        return replicate(jax.tree.map(jnp.copy, begun), context.mesh)

    def _numbers(
        self, solver: SolverState, reports: list[StepReport], upper_loss: float, rows: int
    ) -> dict[str, Any]:
        applied = [report for report in reports if report.finite] or reports
        numbers: dict[str, Any] = {
            "lower_loss": float(np.mean([report.lower.value for report in applied])),
            "upper_loss": upper_loss,
            "skipped_steps": int(solver.skipped),
        }
        if "outer" in self.updates:
            seen = np.concatenate([report.row_weights[report.row_id >= 0] for report in reports])
            # Of the rows seen since the last line, scaled to the pool: rows are drawn without replacement.
            numbers["effective_sample_size"] = float(effective_sample_size(seen)) / seen.size * rows
        numbers |= _diagnostics(reports, applied)
        return numbers


_WORST = {"residual": np.max, "curvature": np.min}
"""Diagnostics of which the worst of several steps is kept; of the others it is the mean."""


def _diagnostics(reports: Sequence[StepReport], applied: Sequence[StepReport]) -> dict[str, float]:
    """What estimators saw in the steps that moved the outer variables, named as in `Diagnostics`."""
    numbers: dict[str, float] = {}
    for field in fields(Diagnostics):
        # Steps that were not applied are counted as such; their NaN would hide all others.
        among = reports if field.name == "finite" else applied
        seen = [report.diagnostics for report in among if report.diagnostics is not None]
        values = [value for d in seen if (value := getattr(d, field.name)) is not None]
        if values:
            numbers[field.name] = float(_WORST.get(field.name, np.mean)(np.asarray(values, np.float64)))
    return numbers


def _reached(
    begun: RunState, solver: SolverState, taken: int, upper_loss: float | None, seen: Sequence[StepReport]
) -> RunState:
    """The state that a move continued from `begun` has reached when it has taken so many steps in all."""
    return replace(
        begun,
        models={**begun.models, "current": solver.inner.inner},
        solver=solver,
        step=begun.step + taken - begun.position.steps,
        position=replace(begun.position, steps=taken),
        upper_loss=upper_loss,
        unlogged=tuple(seen),
    )


def _stop_when_stuck(in_a_row: int, reports: list[StepReport], rows: Any, patience: int) -> None:
    if in_a_row < patience:
        return
    bad = next(report for report in reversed(reports) if not report.finite)
    assert bad.row_losses is not None  # a RowProblem's steps report them
    ids, losses = np.ravel(bad.row_id), np.ravel(bad.row_losses.total)
    guilty = ids[~np.isfinite(losses) & (ids >= 0)]
    which = [rows[i].id for i in (guilty if guilty.size else ids[ids >= 0])]
    what = (
        "rows whose loss is not finite" if guilty.size else "rows of the last such batch, all of finite loss"
    )
    raise NonFiniteError(
        f"{in_a_row} steps in a row gave a loss or gradient that is not finite and were not applied; {what}: "
        f"{', '.join(which)}. Lower the learning rate, clip gradients, or look at these rows."
    )


@lru_cache(maxsize=16)
def _compiled_step(solver: Solver) -> Any:
    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: tuple[Level, ...]
    ) -> tuple[SolverState, StepReport]:
        state, report = solver.step(state, lower_batches, upper_batches, updates)
        # A weak type is lost on disk: with one, a continued run would promote, and round, otherwise.
        return jax.tree.map(_strongly_typed, state), report

    return Compiled(step, donate_argnums=(0,))


def _strongly_typed(array: jax.Array) -> jax.Array:
    keys = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return array if keys else jax.lax.convert_element_type(array, array.dtype)


@lru_cache(maxsize=16)
def _compiled_upper(problem: RowProblem) -> Any:
    return Compiled(lambda outer, inner, batch: problem.upper(outer, inner, batch).value)
