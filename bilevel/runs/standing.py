"""Where a run stands at its newest checkpoint, for whoever checks its hypergradient there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bilevel.core import EstimatorSettings, EvaluationPoint, Problem, RowProblem, check_hypergradient
from bilevel.core.findings import HypergradientCheck
from bilevel.core.problem import Batch
from bilevel.errors import InputError
from bilevel.methods.method import Checkable, Method
from bilevel.runs.job import Job
from bilevel.runs.opening import check_same_inputs
from bilevel.runs.run_record import FOLDER, has_begun
from bilevel.runs.session import ROWS, context_of, evaluated, say, start_of
from bilevel.schedule import CheckpointSaver, Context, RunState, Train, moves_of
from bilevel.storage.checkpoints import Checkpoints
from bilevel.storage.row_store import RowStore


class Standing(NamedTuple):
    """A run's main method at one of its steps.

    Attributes:
        problem: the bilevel problem.
        point: where the run stands.
        estimator: how the run estimates its hypergradient.
        step: solver steps that it has taken.
        lower_steps: inner steps between two of its outer steps.
        note: a line for the reader; "" for none.
    """

    problem: Problem | RowProblem
    point: EvaluationPoint
    estimator: EstimatorSettings
    step: int
    lower_steps: int = 1
    note: str = ""


def standing(folder: Path, job: Job) -> Standing:
    """Where the main method of a run stands at its newest checkpoint.

    The run may be going on; nothing in its folder changes.

    Args:
        folder: the run folder.
        job: what runs there.

    Raises:
        InputError: the method has no hypergradient; there is no checkpoint, none of this version, or rows or model
            changed since the run began.
    """
    if not has_begun(folder):
        raise InputError(f"{folder}: the run has not begun; check it after its first checkpoint")
    method = job.main_method
    check = method.check
    if check is None:
        raise InputError(f"{folder}: {job.main} learns nothing: there is no hypergradient to check")
    check_same_inputs(folder, job)
    method = evaluated(method, job)
    context = context_of(job.main, method, job)
    kept = Checkpoints(folder / FOLDER / job.main, job.checkpoints, read_only=True)
    rows = RowStore(folder / FOLDER / ROWS)
    with contextlib.closing(kept) as checkpoints:
        saver = CheckpointSaver(checkpoints, job.checkpoints, start_of(job), method.schedule, rows)
        found = saver.newest(context.layout, complain=say)
    if found is None:
        raise InputError(
            f"{folder / FOLDER / job.main}: there is no checkpoint yet; runs save themselves once a minute "
            "(--checkpoints.every-seconds)"
        )
    return _standing(method, check, found.state, context)


def check_job(folder: Path, job: Job, **options: Any) -> HypergradientCheck:
    """Checks the hypergradient of a run's main method at its newest checkpoint.

    Args:
        folder: the run folder.
        job: what runs there.
        **options: of `bilevel.core.check_hypergradient`: `horizon`, `settle`, `directions`.
    """
    at = standing(folder, job)
    return check_hypergradient(at.problem, at.estimator, at.point, lower_steps=at.lower_steps, **options)


def _standing(method: Method, check: Checkable, state: RunState, context: Context) -> Standing:
    """The point, with the batches that the next step would see.

    Of accumulated batches it takes the first micro-batch, and of several lower steps the first.
    """
    trains = [move for move in moves_of(method.schedule) if isinstance(move, Train)]
    if state.solver is None or not trains:
        raise InputError("this run has not begun to train: there is no hypergradient to check")
    position = state.position
    moves = method.schedule[position.round].moves if position.round < len(method.schedule) else ()
    move = moves[position.move] if position.move < len(moves) else None
    train = move if isinstance(move, Train) else trains[-1]
    lower, upper = train.batches(state, context)
    steps = position.steps if train is move else 0
    point = EvaluationPoint(
        outer=state.solver.outer.inner,
        inner=state.solver.inner.inner,
        lower_batch=_first(lower.at(steps), axes=2),
        upper_batch=_first(upper.at(steps), axes=1),
        optimizer=check.optimizer,
        optimizer_state=state.solver.inner.optimizer,
        memory=state.solver.memory,
    )
    problem = check.problem or method.problem
    return Standing(problem, point, check.estimator(state.step), state.step, check.lower_steps, check.note)


def _first(batch: Batch, axes: int) -> Batch:
    return jax.tree.map(lambda x: x[(0,) * axes], dict(batch))
