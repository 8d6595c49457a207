"""What a data method must be compared with: the same steps, batch size and pool batches, nothing learned.

uniform            fine-tuning on the whole pool
direct mixing      lambda upper + (1 - lambda) uniform pool loss, one level
validation only    fine-tuning on the trusted rows alone
fixed weights      a weight for each row that never moves: another run's, or its shuffled
clean only         the oracle: the pool with every faulty row at weight zero, which no method can know
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from bilevel.core import Batch, Mean, RowProblem, Weighting, frozen, penalty
from bilevel.core.solver import Solver
from bilevel.methods.method import Data, Leaves, Method
from bilevel.methods.training import TrainingSettings
from bilevel.model import Model, as_model
from bilevel.objectives import mean_loss
from bilevel.schedule import Round, Steps, Train, Weigh
from bilevel.weighting import given, uniform

UpperFunction = Callable[[Any, Any, Batch], Mean]
"""`(outer, params, batch) -> Mean` on trusted rows; the baselines only watch it."""

_WEIGHED = Leaves(rows=None)


def uniform_tuning(
    model: Any, data: Data, *, training: TrainingSettings, upper: UpperFunction | None = None
) -> Method:
    """Fine-tuning on the whole pool, every row at weight one.

    Args:
        model: a `Model`, or a language model of `models.load`.
        data: the rows.
        training: how the model is trained.
        upper: what is watched on trusted rows; by default their mean loss.
    """
    return _over_pool(as_model(model), data, training, upper, uniform(), "uniform")


def clean_only(
    model: Any,
    data: Data,
    *,
    training: TrainingSettings,
    faulty: np.ndarray,
    upper: UpperFunction | None = None,
) -> Method:
    """The oracle: faulty rows at weight zero, the others sharing their weight equally.

    Args:
        model: as of `uniform_tuning`.
        data: likewise.
        training: likewise.
        upper: likewise.
        faulty: bool [pool], which rows are.
    """
    table = np.where(faulty, 0.0, 1.0) * len(faulty) / max(1, int(np.sum(~faulty)))
    method = fixed_weights(model, data, training=training, table=table, upper=upper)
    return replace(method, name="clean_only")


def fixed_weights(
    model: Any,
    data: Data,
    *,
    training: TrainingSettings,
    table: np.ndarray,
    upper: UpperFunction | None = None,
) -> Method:
    """Fine-tuning on the pool with weights that stay as they are.

    Args:
        model: as of `uniform_tuning`.
        data: likewise.
        training: likewise.
        upper: likewise.
        table: [pool], each row's weight.
    """
    weighting = given(jnp.asarray(table, jnp.float32))
    return _over_pool(as_model(model), data, training, upper, weighting, "fixed_weights")


def shuffled_weights(
    model: Any,
    data: Data,
    weights: np.ndarray,
    *,
    training: TrainingSettings,
    seed: int = 0,
    upper: UpperFunction | None = None,
) -> Method:
    """The weights that another method found, on other rows: what their spread alone does.

    The effective sample size is exactly theirs.

    Args:
        model: as of `uniform_tuning`.
        data: likewise.
        training: likewise.
        upper: likewise.
        weights: [pool].
        seed: of the permutation.
    """
    table = np.random.default_rng(seed).permutation(weights)
    method = fixed_weights(model, data, training=training, table=table, upper=upper)
    return replace(method, name="shuffled")


def validation_only(
    model: Any, data: Data, *, training: TrainingSettings, upper: UpperFunction | None = None
) -> Method:
    """Fine-tuning on the trusted rows alone; arguments as those of `uniform_tuning`."""
    chosen = as_model(model)
    training = training.over(len(data["pool"]))
    problem = RowProblem(chosen.first_order, uniform(), upper or mean_loss(chosen.first_order))
    solver = frozen(problem, training.optimizer())
    train = Train(problem, solver, Steps(training.steps), training.plan, ("inner",), over="validation")
    return Method(problem, solver, (Round((train,)),), Leaves(column=None, rows=None), name="validation_only")


def direct_mixing(
    model: Any,
    data: Data,
    *,
    training: TrainingSettings,
    upper_share: float,
    upper: UpperFunction | None = None,
) -> Method:
    """One-level training on both: upper_share * upper + (1 - upper_share) * uniform pool loss.

    Args:
        model: as of `uniform_tuning`.
        data: likewise.
        training: likewise.
        upper: likewise.
        upper_share: lambda.
    """
    chosen = as_model(model)
    training = training.over(len(data["pool"]))
    problem = RowProblem(chosen.first_order, uniform(), upper or mean_loss(chosen.first_order))
    solver = penalty(
        problem, training.optimizer(), optax.identity(), optax.constant_schedule(upper_share), copies=1
    )
    return _weighed(problem, solver, training, "direct_mixing")


def _over_pool(
    model: Model,
    data: Data,
    training: TrainingSettings,
    upper: UpperFunction | None,
    weighting: Weighting,
    name: str,
) -> Method:
    training = training.over(len(data["pool"]))
    problem = RowProblem(model.first_order, weighting, upper or mean_loss(model.first_order))
    return _weighed(problem, frozen(problem, training.optimizer()), training, name)


def _weighed(problem: RowProblem, solver: Solver, training: TrainingSettings, name: str) -> Method:
    train = Train(problem, solver, Steps(training.steps), training.plan, updates=("inner",))
    moves = (train, Weigh(problem.weighting))
    return Method(problem, solver, (Round(moves),), _WEIGHED, name=name, inner=training.optimizer())
