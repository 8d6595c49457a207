"""Data hyper-cleaning, the standard benchmark of bilevel solvers: find rows with wrong labels, and do without them.

Franceschi et al., ICML 2017 (arXiv 1703.01785).

    min over omega   L_val(theta)    where theta minimises   mean of sigmoid(omega_i) l_i(theta)

Every step sees every row, so that Adam on the logits does not count visits, and methods differ in their hypergradient
alone. After each outer step the model is evaluated and the weights are read, for curves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool

from bilevel.core import (
    RowProblem,
    Weighting,
    alternating,
    conjugate_gradient,
    frozen,
    identity,
    implicit,
    penalty,
    unroll,
)
from bilevel.core.curvature import Curvature
from bilevel.core.ranges import check_ranges
from bilevel.core.solver import BOTH, Solver
from bilevel.data import ArrayRows
from bilevel.methods.method import Data, Leaves, Method
from bilevel.model import Model
from bilevel.objectives import mean_loss
from bilevel.schedule import BatchPlan, Evaluate, Move, Steps, Train, Weigh, repeat
from bilevel.weighting import given, row_logits, uniform

EstimatorName = Literal["identity", "conjugate_gradient", "unroll", "penalty"]
RESULT, WEIGHTS = "after_", "weights_"
"""Evaluations and weights by outer step, from 1: `after_1`, `weights_1`, and so on."""


@dataclass(frozen=True)
class CleaningSettings:
    """Settings of hyper-cleaning.

    Attributes:
        outer_steps: steps of the weights. With many more they fit the few trusted rows, and wrong labels come back.
        lower_steps: gradient steps of the classifier for each of them.
        rate: of the classifier's gradient descent.
        outer_rate: of Adam on the logits.
        upper_share: weight of the upper loss in the penalty form.
    """

    outer_steps: int = 40
    lower_steps: int = 20
    rate: float = 0.1
    outer_rate: float = 0.1
    upper_share: float = 0.05

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("outer_steps", self.outer_steps >= 1, "1 or more"),
            ("lower_steps", self.lower_steps >= 1, "1 or more"),
            ("rate", self.rate > 0, "positive"),
            ("outer_rate", self.outer_rate > 0, "positive"),
            ("upper_share", 0 <= self.upper_share <= 1, "in [0, 1]"),
        )


def cleaning(
    model: Model, data: Data, estimator: EstimatorName, settings: CleaningSettings = CleaningSettings()
) -> Method:
    """One logit a row, moved by the hypergradient of one estimator.

    Args:
        model: the classifier.
        data: `pool`, rows with noisy labels, `validation`, trusted ones, and `test`.
        estimator: which.
        settings: how long, and how fast.
    """
    problem = RowProblem(model.row_losses, row_logits("sigmoid"), mean_loss(model.row_losses))
    inner, outer = optax.sgd(settings.rate), optax.adam(settings.outer_rate)
    if estimator == "penalty":
        solver = penalty(problem, inner, outer, optax.constant_schedule(settings.upper_share))
    else:
        # The classifier is not convex: damping keeps the system positive.
        damped = Curvature(relative_damping=1e-2)
        hypergradient = {
            "identity": lambda: implicit(identity(settings.rate)),
            "conjugate_gradient": lambda: implicit(conjugate_gradient(10, damped)),
            "unroll": unroll,
        }[estimator]()
        solver = alternating(problem, inner, outer, hypergradient)
    return _method(estimator, problem, solver, data, settings, updates=BOTH)


def cleaning_baselines(
    model: Model,
    data: Data,
    wrong: Bool[np.ndarray, " rows"],
    settings: CleaningSettings = CleaningSettings(),
) -> Mapping[str, Method]:
    """What hyper-cleaning must be compared with, at as many gradient steps.

    Args:
        model: as of `cleaning`.
        data: likewise.
        wrong: which labels of the pool are wrong, which only an oracle knows.
        settings: likewise.

    Returns:
        `none`, all rows as they are; `clean only`, the right ones alone; `validation only`, the trusted ones alone;
        and `joint`, trained on the data set `joint`, see `joined`.
    """

    def fixed(name: str, weighting: Weighting, over: str = "pool") -> Method:
        problem = RowProblem(model.row_losses, weighting, mean_loss(model.row_losses))
        solver = frozen(problem, optax.sgd(settings.rate))
        return _method(name, problem, solver, data, settings, over=over)

    right = jnp.where(jnp.asarray(wrong), 0.0, len(wrong) / max(1, int(np.sum(~wrong))))
    methods = (
        fixed("none", uniform()),
        fixed("clean only", given(right)),
        fixed("validation only", uniform(), over="validation"),
        fixed("joint", uniform(), over="joint"),
    )
    return {method.name: method for method in methods}


def joined(data: Data) -> Data:
    """The data sets with one more, `joint`: pool and trusted rows, each half of it, trusted ones repeated."""
    pool, trusted = data["pool"].columns, data["validation"].columns
    repeated = np.resize(np.arange(len(data["validation"])), len(data["pool"]))
    both = {name: np.concatenate([pool[name], trusted[name][repeated]]) for name in pool}
    return {**data, "joint": ArrayRows(both)}


def _method(
    name: str,
    problem: RowProblem,
    solver: Solver,
    data: Data,
    settings: CleaningSettings,
    updates: tuple[str, ...] = ("inner",),
    over: str = "pool",
) -> Method:
    plan = BatchPlan(len(data[over]), len(data["validation"]), lower_steps=settings.lower_steps)
    train = Train(problem, solver, Steps(1), plan, updates, over=over)

    def moves(number: int) -> tuple[Move, ...]:
        measure = Evaluate(into=f"{RESULT}{number + 1}")
        if updates != BOTH:
            return train, measure
        return train, measure, Weigh(problem.weighting, into=f"{WEIGHTS}{number + 1}", as_one_batch=True)

    return Method(
        problem, solver, repeat(settings.outer_steps, moves), Leaves(column=None, rows=None), name=name
    )
