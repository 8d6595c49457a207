"""BDS, bilevel data selection: one logit a row.

Xiao & Chen, arXiv 2511.21056 (offline part); the same selector in Shen et al., SEAL, ICLR 2025 (arXiv 2410.07471).

    min over omega   L_val(theta)    where theta minimises   sum_i s_i(omega) l_i(theta),   s = softmax(omega)

    paper        here
    theta        inner variables             L_val    upper
    omega        outer variables, logits     l_i      row_losses
    p_i = N s_i  row weights                 lambda   upper_share = 1 / (1 + gamma)

The penalty form descends lambda L_val + (1 - lambda) [sum_i s_i l_i(theta) - min over theta' of sum_i s_i l_i(theta')]:
rows lose weight by the loss they have left once trusted data pulls at the model, in excess of what they have
without that pull. The implicit forms instead score rows by the alignment of their gradients with the upper one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core import ESTIMATORS, Batch, EstimatorSettings, Mean, RowLosses, RowProblem, make_solver
from bilevel.core.estimators import Situation, unsound
from bilevel.core.ranges import check_ranges
from bilevel.core.solver import Solver
from bilevel.methods.method import Checkable, Data, Method
from bilevel.methods.training import TrainingSettings
from bilevel.model import Model, as_model
from bilevel.objectives import mean_loss
from bilevel.schedule import Choose, Move, Round, Score, Steps, Train, Weigh
from bilevel.schedule import top_share as top_share_of
from bilevel.weighting import entropy_penalty, exponentiated_gradient, row_logits, visited_sgd

PENALTY_SINGLE = EstimatorSettings("penalty_single")
_LEAST_SHARE = 1e-3
"""Of the upper level, so that the weight of the lower one stays finite where it is checked."""


@dataclass(frozen=True)
class BDSSettings:
    """Settings of BDS.

    Attributes:
        weights: `softmax` over the pool, or independent `sigmoid`s.
        rule: how logits move: `exponentiated` gradient or `sgd`, both on visited rows, centred; `adam` is the
            published choice, whose logits record visits, and warns.
        rate: of the rule, logit change for a difference of one nat.
        upper_share: lambda at the start, the weight of the upper loss in the penalty forms; gamma = 1 / lambda - 1.
        upper_share_drop: what lambda loses an epoch (authors: 0.02 to 0.1).
        outer_warmup: steps before the logits begin to move, at most a quarter of the run.
        lower_steps: inner steps between two moves of the logits.
        entropy: strength of the entropy term, in nats; keeps the weights from collapsing onto few rows.
        floor: smallest weight, in [0, 1).
        keep_share: share of the pool that trains, the rest gated to zero by rank.
    """

    weights: Literal["softmax", "sigmoid"] = "softmax"
    rule: Literal["exponentiated", "sgd", "adam"] = "exponentiated"
    rate: float = 0.5
    upper_share: float = 0.25
    upper_share_drop: float = 0.0
    outer_warmup: int = 100
    lower_steps: int = 1
    entropy: float = 0.4
    floor: float = 0.0
    keep_share: float = 1.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("rate", self.rate > 0, "positive"),
            ("upper_share", 0 <= self.upper_share <= 1, "in [0, 1]"),
            ("upper_share_drop", 0 <= self.upper_share_drop <= 1, "in [0, 1]"),
            ("outer_warmup", self.outer_warmup >= 0, "0 or more"),
            ("lower_steps", self.lower_steps >= 1, "1 or more"),
            ("entropy", self.entropy >= 0, "0 or more"),
            ("floor", 0 <= self.floor < 1, "in [0, 1)"),
            ("keep_share", 0 < self.keep_share <= 1, "in (0, 1]"),
        )
        if self.weights == "sigmoid" and self.rule == "exponentiated":
            raise ValueError(
                "the exponentiated rule moves softmax weights: take rule sgd with sigmoid weights"
            )


def bds(
    model: Any,
    data: Data,
    *,
    training: TrainingSettings,
    settings: BDSSettings = BDSSettings(),
    upper: Callable[[Any, Any, Batch], Mean] | None = None,
    top_share: float = 0.5,
    hypergradient: EstimatorSettings = PENALTY_SINGLE,
) -> Method:
    """BDS as a method.

    Warns where the estimator does not suit the settings: why, and what to take instead.

    Args:
        model: a `Model`, or a language model of `models.load`.
        data: `pool`, the rows to weigh, and `validation`, the trusted ones.
        training: how the lower level is trained.
        settings: what this method adds.
        upper: `(outer, params, batch) -> Mean` on trusted rows; by default their mean loss.
        top_share: share of the pool that is selected at the end, in (0, 1].
        hypergradient: how it is estimated. The penalty forms take `upper_share` instead of its gamma; `gauss_newton`
            needs a model that says what its outputs are.

    Returns:
        The method, of one round: losses at the start, training at frozen and then at moving weights, the weights,
        losses at the end, and the set `selected`.
    """
    chosen, rows = as_model(model), len(data["pool"])
    training = training.over(rows)
    weighting = row_logits(settings.weights, settings.floor, settings.keep_share)
    ungated = row_logits(settings.weights, settings.floor)
    problem = RowProblem(
        _differentiable(chosen, hypergradient),
        weighting,
        upper or mean_loss(chosen.first_order),
        entropy_penalty(settings.entropy, ungated) if settings.entropy > 0 else None,
        first_order=chosen.first_order,
    )
    solver = _solver(problem, rows, training, settings, hypergradient)
    plan = replace(training.plan, lower_steps=settings.lower_steps)
    steps = max(1, training.steps // settings.lower_steps)
    warmup = min(settings.outer_warmup, training.steps // 4) // settings.lower_steps
    moves: tuple[Move, ...] = (
        Score("loss_start"),
        *((Train(problem, solver, Steps(warmup), plan, updates=("inner",)),) if warmup else ()),
        Train(problem, solver, Steps(steps - warmup), plan),
        Weigh(weighting),
        Score("loss_end"),
        Choose(top_share_of("weight", top_share), into="selected", signals=("weight",)),
    )
    share = upper_share(training, settings, rows)

    def estimator(step: int) -> EstimatorSettings:
        gamma = 1 / max(float(share(step)), _LEAST_SHARE) - 1
        penalised = ESTIMATORS[hypergradient.name].family == "penalty"
        return replace(hypergradient, gamma=max(gamma, _LEAST_SHARE)) if penalised else hypergradient

    check = Checkable(estimator, training.optimizer(), settings.lower_steps)
    return Method(problem, solver, (Round(moves),), check=check, name="bds", inner=training.optimizer())


def _differentiable(model: Model, hypergradient: EstimatorSettings) -> Callable[[Any, Batch], RowLosses]:
    """The row losses that estimators differentiate: with the model's outputs in sight where they ask for them."""
    if hypergradient.curvature != "gauss_newton":
        return model.row_losses
    if model.output_losses is None:
        raise ValueError(
            "curvature gauss_newton needs a model that says what its outputs are: give logits, or row losses that are "
            "an OutputLoss"
        )
    return model.output_losses


def upper_share(
    training: TrainingSettings, settings: BDSSettings, pool_rows: int
) -> Callable[[Array | int], Array]:
    """lambda by solver step: it falls by `upper_share_drop` after every pass over the pool."""
    steps_a_pass = pool_rows / (settings.lower_steps * training.batch_rows)

    def share(step: Array | int) -> Array:
        # A count of rows would leave the integers of 32 bits after 2^31 visits.
        epoch = jnp.floor(step / steps_a_pass)
        return jnp.clip(settings.upper_share - settings.upper_share_drop * epoch, 0.0, 1.0)

    return share


def _solver(
    problem: RowProblem,
    pool_rows: int,
    training: TrainingSettings,
    settings: BDSSettings,
    hypergradient: EstimatorSettings,
) -> Solver:
    situation = Situation(
        lower_steps=settings.lower_steps,
        network=True,
        adaptive=True,
        outer_variables=pool_rows,
        row_logits_by_adam=settings.rule == "adam",
        bounded=settings.entropy > 0 or settings.floor > 0 or settings.keep_share < 1,
    )
    for line in unsound(hypergradient, situation):
        warnings.warn(line, stacklevel=3)

    return make_solver(
        hypergradient,
        problem,
        training.optimizer(),
        _outer_optimizer(settings),
        upper_share=upper_share(training, settings, pool_rows),
        # As in the authors' code: the logits also move while the share is 1.
        scale_outer=False,
    )


def _outer_optimizer(settings: BDSSettings) -> optax.GradientTransformation:
    if settings.rule == "adam":
        return optax.adam(settings.rate, b1=0.9, b2=0.95)
    if settings.rule == "exponentiated":
        return exponentiated_gradient(settings.rate)
    return visited_sgd(settings.rate)
