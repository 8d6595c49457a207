"""The lower level as solvers see it: the same few operations for row problems and for general ones."""

from bilevel.core.lower_level.of_functions import LowerFunction
from bilevel.core.lower_level.of_rows import LowerRows
from bilevel.core.lower_level.of_rows import row_losses as row_losses
from bilevel.core.lower_level.of_rows import row_scores as row_scores
from bilevel.core.lower_level.operations import LowerLevel as LowerLevel
from bilevel.core.lower_level.operations import LowerPass as LowerPass
from bilevel.core.lower_level.operations import Visit as Visit
from bilevel.core.lower_level.operations import Weighed as Weighed
from bilevel.core.problem import Problem, RowProblem


def lower_level(problem: Problem | RowProblem) -> LowerLevel:
    """The lower level's operations for either form of a problem."""
    return LowerRows(problem) if isinstance(problem, RowProblem) else LowerFunction(problem)
