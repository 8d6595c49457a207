"""Bilevel solvers, one a file: `(init, step)`, pure, as in optax."""

from bilevel.core.solver.alternating import alternating as alternating
from bilevel.core.solver.frozen import frozen as frozen
from bilevel.core.solver.penalty import growing_multiplier as growing_multiplier
from bilevel.core.solver.penalty import penalty as penalty
from bilevel.core.solver.population import population as population
from bilevel.core.solver.single_loop import amigo as amigo
from bilevel.core.solver.single_loop import soba as soba
from bilevel.core.solver.solver import BOTH as BOTH
from bilevel.core.solver.solver import Level as Level
from bilevel.core.solver.solver import Solver as Solver
from bilevel.core.solver.solver import SolverState as SolverState
from bilevel.core.solver.solver import StepReport as StepReport
from bilevel.core.solver.value_gap import dynamic_multiplier as dynamic_multiplier
from bilevel.core.solver.value_gap import fixed_multiplier as fixed_multiplier
from bilevel.core.solver.value_gap import value_gap as value_gap
