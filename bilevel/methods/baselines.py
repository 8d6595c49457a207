"""What a data method must be compared with: the same steps, batch size and pool batches, nothing learned.

uniform            fine-tuning on the whole pool
direct mixing      lambda upper + (1 - lambda) uniform pool loss, one level
validation only    fine-tuning on the trusted rows alone
fixed weights      a weight for each row that never moves: another run's, or its shuffled
clean only         the oracle: the pool with every faulty row at weight zero, which no method can know
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from bilevel.core import (
    Batch,
    Mean,
    RowLosses,
    RowProblem,
    alternating,
    identity,
    implicit,
    penalty,
)
from bilevel.core.solver import Solver
from bilevel.methods.training import TrainingSettings
from bilevel.schedule import Schedule, Train, Weigh
from bilevel.weighting import given, uniform

RowLossFunction = Callable[[Any, Batch], RowLosses]
UpperFunction = Callable[[Any, Any, Batch], Mean]


def uniform_tuning(
    row_losses: RowLossFunction, upper: UpperFunction, training: TrainingSettings
) -> tuple[RowProblem, Schedule]:
    """Returns fine-tuning on the whole pool, every row at weight one."""
    return _over_pool(RowProblem(row_losses, uniform(), upper), training)


def clean_only(
    row_losses: RowLossFunction, upper: UpperFunction, training: TrainingSettings, faulty: np.ndarray
) -> tuple[RowProblem, Schedule]:
    """Returns the oracle: faulty rows at weight zero, the others sharing their weight equally.

    Args:
        row_losses: `(params, batch) -> RowLosses` on pool rows.
        upper: `(outer, params, batch) -> Mean` on trusted rows; only monitored here.
        training: how the lower level is trained.
        faulty: bool [pool], which rows are.
    """
    table = np.where(faulty, 0.0, 1.0) * len(faulty) / max(1, int(np.sum(~faulty)))
    return fixed_weights(row_losses, upper, training, table)


def fixed_weights(
    row_losses: RowLossFunction, upper: UpperFunction, training: TrainingSettings, table: np.ndarray
) -> tuple[RowProblem, Schedule]:
    """Returns fine-tuning on the pool with weights that stay as they are.

    Args:
        row_losses: `(params, batch) -> RowLosses` on pool rows.
        upper: `(outer, params, batch) -> Mean` on trusted rows; only monitored here.
        training: how the lower level is trained.
        table: [pool], each row's weight.
    """
    return _over_pool(RowProblem(row_losses, given(jnp.asarray(table, jnp.float32)), upper), training)


def validation_only(
    row_losses: RowLossFunction, upper: UpperFunction, training: TrainingSettings
) -> tuple[RowProblem, Schedule]:
    """Returns fine-tuning on the trusted rows alone."""
    problem = RowProblem(row_losses, uniform(), upper)
    solver = _frozen(problem, training)
    return problem, ((Train(problem, solver, training.steps, training.plan, ("inner",), over="validation"),),)


def direct_mixing(
    row_losses: RowLossFunction, upper: UpperFunction, training: TrainingSettings, upper_share: float
) -> tuple[RowProblem, Schedule]:
    """Returns one-level training on both: upper_share * upper + (1 - upper_share) * uniform pool loss."""
    problem = RowProblem(row_losses, uniform(), upper)
    solver = penalty(
        problem, training.optimizer(), optax.identity(), optax.constant_schedule(upper_share), copies=1
    )
    train = Train(problem, solver, training.steps, training.plan, updates=("inner",))
    return problem, ((train, Weigh(problem.weighting)),)


def _over_pool(problem: RowProblem, training: TrainingSettings) -> tuple[RowProblem, Schedule]:
    train = Train(problem, _frozen(problem, training), training.steps, training.plan, updates=("inner",))
    return problem, ((train, Weigh(problem.weighting)),)


def _frozen(problem: RowProblem, training: TrainingSettings) -> Solver:
    """A solver for lower steps alone; its estimator is never asked."""
    return alternating(problem, training.optimizer(), optax.identity(), implicit(identity(1.0)))
