"""Rows of the table: penalty (value-function) estimators, which need no derivative of a derivative."""

from __future__ import annotations

from typing import Literal

import optax

from bilevel.core.estimators.settings import AnySettings
from bilevel.core.estimators.table import Estimator, Ingredients
from bilevel.core.solver import Solver, dynamic_multiplier, fixed_multiplier, penalty, value_gap
from bilevel.core.solver.value_gap import Multiplier


def _share(settings: AnySettings) -> float:
    return 1.0 / (1.0 + settings.gamma)


def _penalty(given: Ingredients, copies: Literal[1, 2]) -> Solver:
    upper_share = given.upper_share or optax.constant_schedule(_share(given.settings))
    return penalty(
        given.problem,
        given.inner,
        given.outer,
        upper_share,
        copies=copies,
        scale_outer=given.scale_outer,
        outer_start=given.outer_start,
    )


def _value_gap(given: Ingredients, multiplier: Multiplier) -> Solver:
    return value_gap(given.problem, given.inner, given.outer, multiplier, outer_start=given.outer_start)


FIRST_ORDER = (
    Estimator(
        name="penalty",
        family="penalty",
        formula="grad_outer upper + gamma [grad_outer lower(inner) - grad_outer lower(second copy)]",
        when="second derivatives are out of reach; rows may be hard or noisy but useful",
        cost="2 gradients a lower step (1 upper, 1 of the second copy); nothing for the outer step",
        memory="second copy with its optimizer state",
        assumes="both copies near their optima, from the same start on the same batches; error of order 1 / gamma",
        reads=("gamma",),
        solver=lambda given: _penalty(given, 2),
        scale=_share,
        references="Kwon et al. 2023 (F2SA); Shen et al. 2025 (SEAL); matched copies of Shen & Chen 2023",
    ),
    Estimator(
        name="penalty_single",
        family="penalty",
        formula="grad_outer upper + gamma grad_outer lower(inner)",
        when="memory allows one copy only, and faults cannot be predicted from the other rows",
        cost="1 gradient a lower step (upper); nothing for the outer step",
        memory="none",
        assumes="what a row still loses tells its worth: hard rows look like faulty ones; no hypergradient",
        reads=("gamma",),
        solver=lambda given: _penalty(given, 1),
        scale=_share,
        descends="the weighted loss of the training rows themselves, at a model that also trains on trusted ones",
        references="Shen et al. 2025 (SEAL, memory-efficient variant)",
    ),
    Estimator(
        name="value_gap",
        family="penalty",
        formula="grad_outer upper + gamma [grad_outer lower(inner) - grad_outer lower(copy, K lower steps on)]",
        when="memory for a second copy is there during a step only, and the lower level is solved in K steps",
        cost="1 gradient a lower step, 2 gradients (1 upper, 1 lower) and 1 forward pass an outer step",
        memory="second copy with its optimizer state, during the step",
        assumes="K lower steps reach the optimum; what is still to be trained is multiplied by gamma",
        reads=("gamma",),
        solver=lambda given: _value_gap(given, fixed_multiplier(given.settings.gamma)),
        scale=_share,
        references="Shen & Chen 2023 (V-PBGD)",
    ),
    Estimator(
        name="bome",
        family="penalty",
        formula="as value_gap, with the least gamma under which the excess falls at eta times its own slope",
        when="no multiplier is known beforehand",
        cost="as value_gap",
        memory="as value_gap",
        assumes="as value_gap; descends both levels, so single steps are no hypergradients",
        reads=("eta",),
        solver=lambda given: _value_gap(given, dynamic_multiplier(given.settings.eta)),
        descends="both levels at once, as much of each as its multiplier says",
        references="Ye et al. 2022 (BOME)",
    ),
)
