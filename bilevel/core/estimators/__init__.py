"""The table of estimators: what each needs, costs and assumes, and how it is made.

The same rows answer `--hypergradient NAME`, run through the tests, and make docs/estimators.md. Adding an estimator
is one file for it and one row here.
"""

from bilevel.core.estimators.registry import ESTIMATORS as ESTIMATORS
from bilevel.core.estimators.registry import EstimatorName as EstimatorName
from bilevel.core.estimators.registry import EstimatorSettings as EstimatorSettings
from bilevel.core.estimators.registry import make_solver as make_solver
from bilevel.core.estimators.settings import AnySettings as AnySettings
from bilevel.core.estimators.table import Estimator as Estimator
from bilevel.core.estimators.table import Ingredients as Ingredients
from bilevel.core.estimators.unsound import Situation as Situation
from bilevel.core.estimators.unsound import unsound as unsound
