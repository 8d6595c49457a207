"""Bilevel solvers, one a file: `(init, step)`, pure, as in optax."""

from bilevel.core.solver.alternating import alternating as alternating
from bilevel.core.solver.penalty import penalty as penalty
from bilevel.core.solver.population import population as population
from bilevel.core.solver.solver import BOTH as BOTH
from bilevel.core.solver.solver import Level as Level
from bilevel.core.solver.solver import Solver as Solver
from bilevel.core.solver.solver import SolverState as SolverState
from bilevel.core.solver.solver import StepReport as StepReport
