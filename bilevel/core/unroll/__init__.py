"""Differentiating through training: K optimizer steps of any optax chain, or a whole run of them."""

from bilevel.core.unroll.measured import footprint as footprint
from bilevel.core.unroll.plan import Budget as Budget
from bilevel.core.unroll.plan import Footprint as Footprint
from bilevel.core.unroll.plan import Plan as Plan
from bilevel.core.unroll.plan import best_plan as best_plan
from bilevel.core.unroll.run_derivative import Above as Above
from bilevel.core.unroll.run_derivative import ReplayError as ReplayError
from bilevel.core.unroll.run_derivative import RunDerivative as RunDerivative
from bilevel.core.unroll.run_derivative import differentiate_run as differentiate_run
from bilevel.core.unroll.segments import Reached as Reached
from bilevel.core.unroll.training_run import RunPrograms as RunPrograms
from bilevel.core.unroll.training_run import TrainingRun as TrainingRun
from bilevel.core.unroll.unroll import Mode as Mode
from bilevel.core.unroll.unroll import unroll as unroll
from bilevel.core.unroll.whole_run import whole_run as whole_run
