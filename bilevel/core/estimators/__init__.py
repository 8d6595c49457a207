"""The table of estimators: what each needs, costs and assumes, and how it is made.

The same rows answer `--hypergradient NAME`, run through the tests, and make docs/estimators.md. Adding an estimator
is one file for it and one row here.
"""

from __future__ import annotations

from collections.abc import Callable

import optax
from jaxtyping import Array

from bilevel.core.estimators.first_order import FIRST_ORDER
from bilevel.core.estimators.implicit import IMPLICIT
from bilevel.core.estimators.one_step import ONE_STEP
from bilevel.core.estimators.settings import EstimatorName as EstimatorName
from bilevel.core.estimators.settings import EstimatorSettings as EstimatorSettings
from bilevel.core.estimators.single_loop import SINGLE_LOOP
from bilevel.core.estimators.table import Estimator as Estimator
from bilevel.core.estimators.table import Ingredients as Ingredients
from bilevel.core.estimators.training import TRAINING
from bilevel.core.estimators.unsound import Situation as Situation
from bilevel.core.estimators.unsound import unsound as unsound
from bilevel.core.problem import Problem, RowProblem
from bilevel.core.solver import Solver
from bilevel.core.tree import PyTree

_ROWS = (*ONE_STEP, *IMPLICIT, *SINGLE_LOOP, *TRAINING, *FIRST_ORDER)
ESTIMATORS: dict[str, Estimator] = {row.name: row for row in _ROWS}


def make_solver(
    settings: EstimatorSettings,
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    upper_share: Callable[[Array], Array] | None = None,
    scale_outer: bool = True,
    outer_start: PyTree | None = None,
) -> Solver:
    """Returns the solver that a name stands for; the arguments are those of `Ingredients`."""
    given = Ingredients(problem, inner, outer, settings, upper_share, scale_outer, outer_start)
    return ESTIMATORS[settings.name].solver(given)
