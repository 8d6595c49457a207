"""The mathematics: problems, adjoint rules, hypergradients, solvers. Knows pytrees and callables, no text, no files."""

from bilevel.core.adjoint import identity as identity
from bilevel.core.adjoint import optimizer_aware as optimizer_aware
from bilevel.core.compiled import Compiled as Compiled
from bilevel.core.hypergradient import implicit as implicit
from bilevel.core.losses import Mean as Mean
from bilevel.core.losses import Reduction as Reduction
from bilevel.core.losses import RowLosses as RowLosses
from bilevel.core.problem import Batch as Batch
from bilevel.core.problem import OutputLoss as OutputLoss
from bilevel.core.problem import Problem as Problem
from bilevel.core.problem import RowProblem as RowProblem
from bilevel.core.problem import Weighting as Weighting
from bilevel.core.solver import alternating as alternating
from bilevel.core.solver import penalty as penalty
from bilevel.core.solver import population as population
from bilevel.core.unroll import unroll as unroll
