"""The training of a run's model, taken again from its start: the same batches, each row at a weight that stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from bilevel.core import RowProblem
from bilevel.core.lower_steps import Iterate
from bilevel.core.problem import Batch
from bilevel.core.unroll import Reached, TrainingRun
from bilevel.data import Dataset, Packing
from bilevel.errors import InputError
from bilevel.layout import Layout
from bilevel.methods.method import Method
from bilevel.model import Model
from bilevel.runs.job import Job
from bilevel.runs.session import context_of, start_of
from bilevel.schedule import Context, RunState, Train, moves_of
from bilevel.schedule.batches import Batches
from bilevel.schedule.train import CONTINUE
from bilevel.weighting import row_weights


@dataclass(frozen=True)
class Retraining:
    """A run's training as a function of the rows' weights.

    Attributes:
        run: its steps, from the model that it began with.
        problem: lower level = mean of w_i l_i with the weights as outer variables; the run's own upper level.
        optimizer: of the model.
        weights: [pool], what each row weighed.
        model: the model's functions.
        pool: the rows that are weighed.
        trusted: the rows of the upper level.
        layout: devices.
        packing: whether several trusted rows share a sequence.
        batch_rows: trusted rows at a time.
        seen: [pool], how many times the run draws each row.
    """

    run: TrainingRun
    problem: RowProblem
    optimizer: optax.GradientTransformation
    weights: Float[np.ndarray, " pool"]
    model: Model
    pool: Dataset
    trusted: Dataset
    layout: Layout
    packing: Packing
    batch_rows: int
    seen: Int[np.ndarray, " pool"]

    @property
    def table(self) -> jax.Array:
        """The weights as outer variables."""
        return self.layout.replicate(jnp.asarray(self.weights, jnp.result_type(float)))


class _Piece(NamedTuple):
    """Lower steps of one move: their batches, the first of them, how many, how each is cut."""

    batches: Batches
    steps: int
    accumulate: int


def retraining(job: Job, name: str, weights: np.ndarray | None = None) -> Retraining:
    """The training of one of a run's methods.

    Batches are drawn again: draws are functions of the seed and of the rows. Steps that the run put back (a weight
    network's virtual ones) are left out.

    Args:
        job: what ran.
        name: which of its methods.
        weights: [pool], at which weight each row is trained on; None for one each.

    Raises:
        InputError: the method's training cannot be taken again from what its folder and its experiment tell.
    """
    method = job.methods.get(name)
    if not isinstance(method, Method):
        known = ", ".join(each for each, made in job.methods.items() if isinstance(made, Method))
        raise InputError(f"--method {name}: this run has no such method that stands alone; it has {known}")
    if not isinstance(method.problem, RowProblem):
        raise InputError(
            f"{name}: its lower level is no weighted mean of row losses: there are no rows to attribute to"
        )
    optimizer = method.inner
    if optimizer is None:
        raise InputError(
            f"{name}: this method does not say what trains its model: give Method(..., inner=OPTIMIZER)"
        )
    context, pool = context_of(name, method, job), job.data["pool"]
    pieces = _pieces(name, method, start_of(job), context)
    params = job.layout.replicate(job.model.params)
    state = job.layout.replicate(optimizer.init(params))
    steps = sum(piece.steps for piece in pieces)
    drawn = np.concatenate([piece.batches.drawn.ids(k) for piece in pieces for k in range(piece.steps)])
    plan = next(move for move in moves_of(method.schedule) if isinstance(move, Train)).plan
    given = method.problem
    problem = RowProblem(
        job.model.row_losses,
        row_weights(),
        given.upper,
        reduction=given.reduction,
        first_order=job.model.first_order,
    )
    return Retraining(
        run=TrainingRun(Reached(Iterate(params, state), ()), steps, _stretches(pieces, job.layout)),
        problem=problem,
        optimizer=optimizer,
        weights=np.ones(len(pool)) if weights is None else np.asarray(weights, np.float64),
        model=job.model,
        pool=pool,
        trusted=job.data["validation"],
        layout=job.layout,
        packing=(plan.upper_packing or plan.packing) if job.model.packs else "off",
        batch_rows=job.layout.rounded(min(plan.upper_size // plan.accumulate, len(job.data["validation"]))),
        seen=np.bincount(drawn[drawn >= 0], minlength=len(pool)),
    )


def _pieces(name: str, method: Method, state: RunState, context: Context) -> list[_Piece]:
    """The training steps of a method, cut by its moves, from where its model last began anew."""
    pieces: list[_Piece] = []
    drawn = dict(state.drawn)
    for move in moves_of(method.schedule):
        changed = [part for part in move.writes if part.startswith("data:")]
        if changed:
            raise InputError(
                f"{name}: its rows change while it runs ({type(move).__name__} writes {changed[0]}), and batches of "
                "rows that are gone cannot be drawn again: attribute a training on the rows as they are in the end"
            )
        if not isinstance(move, Train):
            continue
        if move.rows is not None or move.over != "pool":
            raise InputError(
                f"{name}: it trains on rows that it chooses while it runs ({move.rows or move.over}): its batches "
                "cannot be drawn again without it"
            )
        if move.start != CONTINUE:
            if move.start != "base":
                raise InputError(f"{name}: it begins anew from {move.start!r}, which only the run itself had")
            pieces = []
        now = RunState(models=state.models, data=state.data, drawn=drawn)
        lower, _ = move.batches(now, context)
        steps = move.solver_steps(lower) * move.plan.lower_steps
        drawn[lower.key] = lower.drawn.after(steps)
        if "inner" in move.updates:
            pieces.append(_Piece(lower, steps, move.plan.accumulate))
    if not sum(piece.steps for piece in pieces):
        raise InputError(f"{name}: it takes no training step that stays: there is nothing to attribute")
    if len({(piece.batches.drawn.batch, piece.accumulate) for piece in pieces}) > 1:
        raise InputError(f"{name}: its moves cut batches in different ways, which one program cannot take")
    return pieces


def _stretches(pieces: list[_Piece], layout: Layout) -> Callable[[int, int], Batch]:
    """`(begin, end) -> batches` of lower steps counted over all pieces."""
    starts = np.cumsum([0, *(piece.steps for piece in pieces)])
    rows, accumulate = pieces[0].batches.rows, pieces[0].accumulate

    def batches(begin: int, end: int) -> dict[str, Any]:
        ids = []
        for step in range(begin, end):
            number = int(np.searchsorted(starts, step, side="right")) - 1
            ids.append(pieces[number].batches.drawn.ids(step - int(starts[number])))
        return layout.batch(rows, np.reshape(ids, (end - begin, accumulate, -1)))

    return batches
