"""Combinations that run and mislead: why, and what to take instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bilevel.core.estimators.registry import ESTIMATORS
from bilevel.core.estimators.settings import AnySettings
from bilevel.core.estimators.table import Estimator

FEW_LOWER_STEPS = 5
MANY_HARD_ROWS = 0.1
MANY_OUTER_VARIABLES = 100


class Situation(NamedTuple):
    """What a method knows of the place where an estimator is to work; what it leaves out is taken to be harmless.

    Attributes:
        lower_steps: inner steps between two outer steps; None where the lower level is solved in another way.
        network: whether the lower level trains a network, whose Hessian is indefinite.
        adaptive: whether the inner optimizer rescales gradients (Adam).
        row_logits_by_adam: whether Adam moves one logit a row.
        bounded: whether an entropy term, a floor or a budget keeps weights from collapsing.
        outer_variables: how many there are; None for few.
        hard_share: share of the rows that are known to be right and hard.
    """

    lower_steps: int | None = None
    network: bool = False
    adaptive: bool = False
    row_logits_by_adam: bool = False
    bounded: bool = True
    outer_variables: int | None = None
    hard_share: float = 0.0


class Unsound(NamedTuple):
    """One such combination.

    Attributes:
        concerns: which rows of the table.
        holds: when.
        line: why it misleads and what to take instead; `{name}` and the situation's fields are filled in.
    """

    concerns: Callable[[Estimator], bool]
    holds: Callable[[AnySettings, Situation], bool]
    line: str


def _named(*names: str) -> Callable[[Estimator], bool]:
    return lambda row: row.name in names


def _inverts(row: Estimator) -> bool:
    return row.inverts


def _solves_at_once(row: Estimator) -> bool:
    return row.inverts and row.family == "implicit"


def _undamped(settings: AnySettings, at: Situation) -> bool:
    nystrom_damps_itself = settings.name == "nystrom"
    given = settings.damping > 0 or settings.relative_damping > 0
    return at.network and not (given or nystrom_damps_itself)


UNSOUND = (
    Unsound(
        _inverts,
        _undamped,
        "{name} inverts the curvature of a network, which is indefinite (hessian) or all but singular (gauss_newton): "
        "add damping",
    ),
    Unsound(
        _solves_at_once,
        lambda settings, at: at.lower_steps is not None and at.lower_steps < FEW_LOWER_STEPS,
        "{name} describes the optimum of the lower level, of which {lower_steps} inner steps between outer steps know "
        "little: take optimizer_aware, which describes the step that is taken, or more lower steps",
    ),
    Unsound(
        _named("identity"),
        lambda settings, at: at.adaptive,
        "identity differentiates a gradient step where Adam takes another: optimizer_aware differentiates Adam's, at "
        "the same cost",
    ),
    Unsound(
        _named("optimizer_aware"),
        lambda settings, at: at.lower_steps is not None and at.lower_steps > 1,
        "optimizer_aware differentiates the last of {lower_steps} inner steps alone: take unroll for all of them",
    ),
    Unsound(
        _named("unroll", "whole_run"),
        lambda settings, at: at.lower_steps == 1,
        "{name} through 1 inner step is optimizer_aware at a higher price: take that, or more lower steps",
    ),
    Unsound(
        _named("evolution_strategies", "pzobo"),
        lambda settings, at: (at.outer_variables or 0) > MANY_OUTER_VARIABLES,
        "{name} needs about as many samples as there are outer variables, {outer_variables:,} here: take "
        "optimizer_aware, or unroll",
    ),
    Unsound(
        _named("penalty_single"),
        lambda settings, at: not at.bounded,
        "penalty_single without an entropy term, a floor or a budget moves all weight to the rows of least loss: add "
        "one, or take penalty",
    ),
    Unsound(
        _named("penalty_single"),
        lambda settings, at: at.hard_share > MANY_HARD_ROWS,
        "penalty_single weighs rows by the loss they have left, which hard rows ({hard_share:.0%} here) share with "
        "faulty ones: take penalty, which compares with a second copy",
    ),
    Unsound(
        lambda row: True,
        lambda settings, at: at.row_logits_by_adam,
        "Adam on row logits records how often a row was visited, not how good it is; it is here to reproduce published "
        "runs: take rule exponentiated or sgd to weigh rows",
    ),
)


def unsound(settings: AnySettings, situation: Situation) -> tuple[str, ...]:
    """A line for each combination that misleads: why, and what to take instead."""
    return tuple(
        rule.line.format(name=settings.name, **situation._asdict())
        for rule in UNSOUND
        if rule.concerns(ESTIMATORS[settings.name]) and rule.holds(settings, situation)
    )
