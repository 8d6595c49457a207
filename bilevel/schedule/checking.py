"""What `bilevel.check` needs of a run: its problem, and the point where it stands."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

from bilevel.core import CheckPoint, EstimatorSettings, Problem, RowProblem
from bilevel.core.problem import Batch
from bilevel.errors import InputError
from bilevel.schedule.driver import Schedule
from bilevel.schedule.state import Context, RunState
from bilevel.schedule.train import Train


class CheckableRun(NamedTuple):
    """What an experiment's function `to_check(folder)` returns for one of its runs.

    Attributes:
        problem: the bilevel problem.
        point: where the run stands.
        estimator: how the run estimates its hypergradient.
        step: solver steps that it has taken.
        lower_steps: inner steps between two of its outer steps.
    """

    problem: Problem | RowProblem
    point: CheckPoint
    estimator: EstimatorSettings
    step: int
    lower_steps: int = 1


def check_point(
    schedule: Schedule, state: RunState, context: Context, optimizer: optax.GradientTransformation
) -> CheckPoint:
    """Returns the point at which a run stands, with the batches that its next step would see.

    Of accumulated batches it takes the first micro-batch, and of several lower steps the first.

    Args:
        schedule: what ran.
        state: where it stands.
        context: what it ran with.
        optimizer: of the inner variables.

    Raises:
        InputError: the run has not trained yet.
    """
    trains = [move for moves in schedule for move in moves if isinstance(move, Train)]
    if state.solver is None or not trains:
        raise InputError("this run has not begun to train: there is no hypergradient to check")
    lower_batches, upper_batches = trains[-1].batches(state, context)
    return CheckPoint(
        outer=state.solver.outer.inner,
        inner=state.solver.inner.inner,
        lower_batch=_first(lower_batches(state.step), axes=2),
        upper_batch=_first(upper_batches(state.step), axes=1),
        optimizer=optimizer,
        optimizer_state=state.solver.inner.optimizer,
        memory=state.solver.memory,
    )


def _first(batch: Batch, axes: int) -> Batch:
    return jax.tree.map(lambda x: x[(0,) * axes], dict(batch))
