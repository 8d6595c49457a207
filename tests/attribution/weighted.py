"""A training at rows' weights from a table, small enough to be taken again many times."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel.core import RowProblem, frozen
from bilevel.layout import data_layout
from bilevel.methods import TrainingSettings
from bilevel.methods.method import Leaves, Method
from bilevel.runs.job import Job, job_of
from bilevel.schedule import BatchPlan, Round, Steps, Train, Weigh
from bilevel.weighting import given as table_of
from tests.schedule import toy

STEPS = 12
TRAINING = TrainingSettings(steps=STEPS, batch_rows=8, upper_rows=8, learning_rate=0.05, warmup_share=0.0)
DATA = {"pool": toy.encoded(20, 0, faulty=6), "validation": toy.encoded(8, 100)}
WEIGHTS = np.linspace(0.5, 1.5, 20)


def tuning() -> Method:
    """Training at rows' weights from a table, by a rule without Adam's kinks at its first steps."""
    optimizer = optax.sgd(0.3, momentum=0.8)
    problem = RowProblem(toy.row_losses, table_of(jnp.asarray(WEIGHTS, jnp.float32)), toy.UPPER)
    solver = frozen(problem, optimizer)
    train = Train(problem, solver, Steps(STEPS), BatchPlan(8, 8), ("inner",))
    moves = (train, Weigh(problem.weighting))
    return Method(problem, solver, (Round(moves),), Leaves(rows=None), name="weighted", inner=optimizer)


def made(devices: int = 1, method: Method | None = None) -> Job:
    """A job whose rows weigh what a table says."""
    return job_of(method or tuning(), DATA, toy.MODEL, layout=data_layout(jax.devices()[:devices]))
