"""Every estimator of the table as a row score: what it says of a step's weights, summed over the steps of the run.

Each looks a step or a few ahead, or takes the lower level for solved, where the whole run's derivative looks to its
end. Weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from bilevel.attribution.retraining import Retraining
from bilevel.core import ESTIMATORS, Compiled, EstimatorSettings, make_solver
from bilevel.core.lower_steps import Iterate
from bilevel.core.problem import Batch
from bilevel.core.solver import SolverState
from bilevel.schedule.batches import first_rows

_UPPER_ROWS = 64


def scores_along_the_run(
    retraining: Retraining,
    settings: EstimatorSettings,
    tell: Callable[[int], None] = lambda step: None,
) -> Float[np.ndarray, " pool"]:
    """An estimator's gradient with respect to the row weights, summed over the run's steps.

    Args:
        retraining: the training.
        settings: which estimator, and how hard it works.
        tell: told of each step that is done.

    Raises:
        ValueError: the estimator refuses the problem or the optimizer.
    """
    given = retraining
    solver = make_solver(settings, given.problem, given.optimizer, _summed())
    state = solver.init(jax.random.key(0), given.run.start.iterate.inner, given.pool.sizes)
    table = given.table
    state = state.replace(
        inner=Iterate(state.inner.inner, given.run.start.iterate.optimizer),
        outer=Iterate(table, jnp.zeros_like(table)),
    )
    state = given.layout.replicate(state)
    # One batch of trusted rows for all steps: as many as the memory of a step allows for.
    trusted = first_rows(
        given.trusted,
        given.layout.rounded(min(len(given.trusted), _UPPER_ROWS)),
        given.layout,
        given.packing,
    )
    upper = jax.tree.map(lambda x: x[None], trusted)

    def one(state: SolverState, lower: Batch, upper: Batch) -> SolverState:
        return solver.step(state, lower, upper)[0]

    step = Compiled(one)
    for number in range(given.run.steps):
        state = step(state, given.run.batches(number, number + 1), upper)
        tell(number + 1)
    scale = ESTIMATORS[settings.name].scale(settings)
    return np.asarray(given.layout.gather(state.outer.optimizer), np.float64) / scale


def _summed() -> optax.GradientTransformation:
    """An outer optimizer that moves nothing and keeps the sum of the gradients as its state."""
    return optax.GradientTransformation(
        lambda params: optax.tree.zeros_like(params),
        lambda gradient, state, params=None: (
            optax.tree.zeros_like(gradient),
            optax.tree.add(state, gradient),
        ),
    )
