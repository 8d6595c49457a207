"""All rows of the table, the settings that name one, and the solvers that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import optax
from jaxtyping import Array

from bilevel.core.estimators.first_order import FIRST_ORDER
from bilevel.core.estimators.implicit import IMPLICIT
from bilevel.core.estimators.one_step import ONE_STEP
from bilevel.core.estimators.settings import AnySettings
from bilevel.core.estimators.single_loop import SINGLE_LOOP
from bilevel.core.estimators.table import Estimator, Ingredients
from bilevel.core.estimators.training import TRAINING
from bilevel.core.problem import Problem, RowProblem
from bilevel.core.solver import Solver
from bilevel.core.tree import PyTree

_ROWS = (*ONE_STEP, *IMPLICIT, *SINGLE_LOOP, *TRAINING, *FIRST_ORDER)
ESTIMATORS: dict[str, Estimator] = {row.name: row for row in _ROWS}

if TYPE_CHECKING:
    EstimatorName = str
else:  # the one list of names is the table, which a type checker does not read
    EstimatorName = Literal[tuple(ESTIMATORS)]


@dataclass(frozen=True)
class EstimatorSettings(AnySettings):
    """How the hypergradient is estimated. What the named estimator does not read must be left at its default.

    Attributes:
        name: which estimator; docs/estimators.md compares them.

    Raises:
        ValueError: for a name that is not in the table, or settings outside their ranges.
    """

    name: EstimatorName = "optimizer_aware"

    def __post_init__(self) -> None:
        if self.name not in ESTIMATORS:
            raise ValueError(f"there is no estimator {self.name!r}: choose one of {', '.join(ESTIMATORS)}")
        super().__post_init__()


def make_solver(
    settings: EstimatorSettings,
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    *,
    upper_share: Callable[[Array], Array] | None = None,
    scale_outer: bool = True,
    outer_start: PyTree | None = None,
) -> Solver:
    """The solver that a name stands for.

    Args:
        settings: which estimator, and how hard it works.
        problem: the bilevel problem.
        inner: optimizer of the inner variables.
        outer: optimizer of the outer variables.
        upper_share: solver step -> share of the upper level, for the penalty forms: 1 / (1 + gamma) without it.
        scale_outer: see `bilevel.core.solver.penalty`.
        outer_start: initial outer variables, for a general problem only.

    Raises:
        ValueError: for settings that this estimator does not read.
    """
    row = ESTIMATORS[settings.name]
    row.check(settings)
    return row.solver(Ingredients(problem, inner, outer, settings, upper_share, scale_outer, outer_start))
