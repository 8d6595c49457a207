"""Weights from a network that another run has trained: no bilevel step, one forward pass of the network a batch.

Yu et al., DWM, ICML 2025, say that the learned weighting model can be transferred, to other selections of data and to
larger models, and not how. Here stage k of a run takes the snapshot of stage k, by share of the steps, since a network
was trained for what a model lacks at that stage; or one snapshot serves to the end. Either way the model first trains
at uniform weights for as large a share of the steps as the network's run did: no network has learned what rows are
worth to a model that knows nothing yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.core import Batch, Mean, RowProblem, frozen
from bilevel.core.tree import PyTree
from bilevel.errors import InputError
from bilevel.methods.method import Data, Method
from bilevel.methods.training import TrainingSettings
from bilevel.model import as_model
from bilevel.objectives import mean_loss
from bilevel.schedule import Choose, Move, Round, Score, Steps, Train, Weigh
from bilevel.schedule import top_share as top_share_of
from bilevel.schedule.snapshots import Adopt
from bilevel.storage.snapshots import Snapshot


def transferred(
    model: Any,
    data: Data,
    *,
    snapshots: Sequence[Snapshot],
    training: TrainingSettings,
    upper: Callable[[Any, Any, Batch], Mean] | None = None,
    top_share: float = 0.5,
    devices: int = 1,
) -> Method:
    """Training at the weights of frozen networks as a method.

    Args:
        model: a `Model`, or a language model of `models.load`.
        data: `pool`, the rows to weigh, and `validation`, trusted ones.
        snapshots: of one network, in the order in which they take over, each for an equal share of the steps.
        training: how the model is trained.
        upper: `(outer, params, batch) -> Mean` on trusted rows, which is only watched; by default their mean loss.
        top_share: share of the pool that the run selects at its end.
        devices: that share a batch, for a network of scope `device`.

    Returns:
        The method, of one round a snapshot, with one of uniform steps before a single one; the last ends with the
        weights of all rows by the last snapshot and the set `selected`.

    Raises:
        InputError: there are fewer steps than snapshots.
    """
    chosen = as_model(model)
    training = training.over(len(data["pool"]))
    if training.steps < len(snapshots):
        raise InputError(
            f"{training.steps} steps cannot be shared out among {len(snapshots)} snapshots: take more steps, or the "
            "last snapshot alone (RUN/last)"
        )
    info = snapshots[0].info
    parts = _parts(snapshots, training.steps)
    weighting = info.network.weighting(info.vocab_size, devices)
    begun = weighting
    if parts[0].parameters is not None:
        first = jax.tree.map(jnp.asarray, parts[0].parameters)
        begun = weighting._replace(init=lambda key, sizes: (first, ()))
    problem = RowProblem(chosen.first_order, begun, upper or mean_loss(chosen.first_order))
    solver = frozen(problem, training.optimizer())
    rounds: list[tuple[Move, ...]] = []
    for number, part in enumerate(parts):
        train = Train(problem, solver, Steps(part.steps), training.plan, updates=("inner",))
        rounds.append((Adopt(part.parameters), train) if number else (Score("loss_start"), train))
    joint = info.network.scorer(info.vocab_size).joint
    rounds[-1] = (
        *rounds[-1],
        Weigh(weighting, as_one_batch=not joint),
        Score("loss_end"),
        Choose(top_share_of("weight", top_share), into="selected", signals=("weight",)),
    )
    schedule = tuple(Round(moves) for moves in rounds)
    return Method(problem, solver, schedule, name="transferred", inner=training.optimizer())


class _Part(NamedTuple):
    """Parameters of a network, None for one that weighs all rows alike, and the steps that it serves for."""

    parameters: PyTree | None
    steps: int


def _parts(snapshots: Sequence[Snapshot], steps: int) -> list[_Part]:
    if len(snapshots) == 1:
        info = snapshots[0].info
        warmup = steps * info.warmup_stages // info.stages
        alone = _Part(snapshots[0].parameters, steps - warmup)
        return [_Part(None, warmup), alone] if warmup else [alone]
    ends = [steps * number // len(snapshots) for number in range(len(snapshots) + 1)]
    return [
        _Part(snapshot.parameters, end - start)
        for snapshot, (start, end) in zip(snapshots, pairwise(ends), strict=True)
    ]
