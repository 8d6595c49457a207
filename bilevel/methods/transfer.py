"""Weights from a network that another run has trained: no bilevel step, one forward pass of the network a batch.

Yu et al., DWM, ICML 2025, say that the learned weighting model can be transferred, to other selections of data and to
larger models, and not how. Here stage k of a run takes the snapshot of stage k, by share of the steps, since a network
was trained for what a model lacks at that stage; or one snapshot serves from the first step to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bilevel.core import Batch, Mean, RowLosses, RowProblem, alternating, identity, implicit
from bilevel.errors import InputError
from bilevel.methods.training import TrainingSettings
from bilevel.runtime.snapshots import Snapshot
from bilevel.schedule import Move, Schedule, Score, Select, Train, Weigh
from bilevel.schedule.snapshots import Adopt


def transferred(
    row_losses: Callable[[Any, Batch], RowLosses],
    upper: Callable[[Any, Any, Batch], Mean],
    snapshots: Sequence[Snapshot],
    training: TrainingSettings,
    top_share: float = 0.5,
    devices: int = 1,
) -> tuple[RowProblem, Schedule]:
    """Returns training at the weights of frozen networks as a problem and a schedule.

    Args:
        row_losses: `(params, batch) -> RowLosses` on pool rows.
        upper: `(outer, params, batch) -> Mean` on trusted rows; only monitored here.
        snapshots: of one network, in the order in which they take over, each for an equal share of the steps.
        training: how the model is trained.
        top_share: share of the pool that the run selects at its end.
        devices: that share a batch, for a network of scope `device`.

    Returns:
        The problem, and one round a snapshot; the last ends with the weights of all rows by the last snapshot and the
        set `selected`.

    Raises:
        InputError: there are fewer steps than snapshots.
    """
    if training.steps < len(snapshots):
        raise InputError(
            f"{training.steps} steps cannot be shared out among {len(snapshots)} snapshots: take more steps, or the "
            "last snapshot alone (RUN/last)"
        )
    info = snapshots[0].info
    first = jax.tree.map(jnp.asarray, snapshots[0].parameters)
    weighting = info.network.weighting(info.vocab_size, devices)._replace(init=lambda key: (first, ()))
    problem = RowProblem(row_losses, weighting, upper)
    solver = alternating(problem, training.optimizer(), optax.identity(), implicit(identity(1.0)))
    ends = [training.steps * number // len(snapshots) for number in range(len(snapshots) + 1)]
    rounds: list[tuple[Move, ...]] = []
    for number, snapshot in enumerate(snapshots):
        train = Train(problem, solver, ends[number + 1] - ends[number], training.plan, updates=("inner",))
        rounds.append((Adopt(snapshot.parameters), train) if number else (Score("loss_start"), train))
    joint = info.network.scorer(info.vocab_size).joint
    rounds[-1] = (
        *rounds[-1],
        Weigh(weighting, as_one_batch=not joint),
        Score("loss_end"),
        Select("weight", into="selected", share=top_share),
    )
    return problem, tuple(rounds)
