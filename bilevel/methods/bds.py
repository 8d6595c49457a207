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

from bilevel.core import Batch, EstimatorSettings, Mean, RowLosses, RowProblem, make_solver
from bilevel.core.estimators import Situation, unsound
from bilevel.core.solver import Solver
from bilevel.methods.training import TrainingSettings
from bilevel.schedule import Move, Schedule, Score, Select, Train, Weigh
from bilevel.weighting import entropy_penalty, exponentiated_gradient, row_logits, visited_sgd

PENALTY_SINGLE = EstimatorSettings("penalty_single")


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
        for name, inside, allowed in (
            ("rate", self.rate > 0, "positive"),
            ("upper_share", 0 <= self.upper_share <= 1, "in [0, 1]"),
            ("upper_share_drop", 0 <= self.upper_share_drop <= 1, "in [0, 1]"),
            ("outer_warmup", self.outer_warmup >= 0, "0 or more"),
            ("lower_steps", self.lower_steps >= 1, "1 or more"),
            ("entropy", self.entropy >= 0, "0 or more"),
            ("floor", 0 <= self.floor < 1, "in [0, 1)"),
            ("keep_share", 0 < self.keep_share <= 1, "in (0, 1]"),
        ):
            if not inside:
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}")
        if self.weights == "sigmoid" and self.rule == "exponentiated":
            raise ValueError(
                "the exponentiated rule moves softmax weights: take rule sgd with sigmoid weights"
            )


def bds(
    row_losses: Callable[[Any, Batch], RowLosses],
    upper: Callable[[Any, Any, Batch], Mean],
    pool_rows: int,
    training: TrainingSettings,
    settings: BDSSettings,
    top_share: float = 0.5,
    first_order: Callable[[Any, Batch], RowLosses] | None = None,
    hypergradient: EstimatorSettings = PENALTY_SINGLE,
) -> tuple[RowProblem, Schedule]:
    """Returns BDS as a problem and a schedule.

    Warns where the estimator does not suit the settings: why, and what to take instead.

    Args:
        row_losses: `(params, batch) -> RowLosses` on pool rows.
        upper: `(outer, params, batch) -> Mean` on trusted rows.
        pool_rows: rows of the pool, N.
        training: how the lower level is trained.
        settings: what this method adds.
        top_share: share of the pool that is selected at the end, in (0, 1].
        first_order: `row_losses` by means that have values and gradients alone, see `RowProblem`.
        hypergradient: how it is estimated. The penalty forms take `upper_share` instead of its gamma; `gauss_newton`
            needs row losses that are an `OutputLoss`.

    Returns:
        The problem, and one round: losses at the start, training at frozen and then at moving weights, the weights,
        losses at the end, and the set `selected`.
    """
    weighting = row_logits(pool_rows, settings.weights, settings.floor, settings.keep_share)
    ungated = row_logits(pool_rows, settings.weights, settings.floor)
    penalise = entropy_penalty(settings.entropy, ungated) if settings.entropy > 0 else None
    problem = RowProblem(row_losses, weighting, upper, penalise, first_order=first_order)
    solver = _solver(problem, pool_rows, training, settings, hypergradient)
    plan = replace(training.plan, lower_steps=settings.lower_steps)
    steps = max(1, training.steps // settings.lower_steps)
    warmup = min(settings.outer_warmup, training.steps // 4) // settings.lower_steps
    moves: tuple[Move, ...] = (
        Score("loss_start"),
        *((Train(problem, solver, warmup, plan, updates=("inner",)),) if warmup else ()),
        Train(problem, solver, steps - warmup, plan),
        Weigh(weighting),
        Score("loss_end"),
        Select("weight", into="selected", share=top_share),
    )
    return problem, (moves,)


def upper_share(
    training: TrainingSettings, settings: BDSSettings, pool_rows: int
) -> Callable[[Array | int], Array]:
    """Returns lambda by solver step: it falls by `upper_share_drop` after every pass over the pool."""

    def share(step: Array | int) -> Array:
        epoch = step * settings.lower_steps * training.batch_rows // pool_rows
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
        upper_share(training, settings, pool_rows),
        # As in the authors' code: the logits also move while the share is 1.
        scale_outer=False,
    )


def _outer_optimizer(settings: BDSSettings) -> optax.GradientTransformation:
    if settings.rule == "adam":
        return optax.adam(settings.rate, b1=0.9, b2=0.95)
    if settings.rule == "exponentiated":
        return exponentiated_gradient(settings.rate)
    return visited_sgd(settings.rate)
