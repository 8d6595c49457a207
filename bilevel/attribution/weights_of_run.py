"""At which weight each row is held when a run's training is taken again."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from bilevel.core import RowProblem
from bilevel.errors import InputError
from bilevel.methods.method import Method
from bilevel.runs.job import Job
from bilevel.runs.weights import FILE, read_weights


def weights_of_run(folder: Path, job: Job, name: str) -> Float[np.ndarray, " pool"]:
    """What each row of the pool weighs in the end, by one of a run's methods.

    Args:
        folder: the run folder.
        job: what ran there.
        name: the method.

    Raises:
        InputError: the method learns weights of which the folder keeps none.
    """
    method, rows = job.methods.get(name), len(job.data["pool"])
    if not isinstance(method, Method) or not isinstance(method.problem, RowProblem):
        return np.ones(rows)  # refused where it is taken again
    weighting, ids = method.problem.weighting, {"row_id": np.arange(rows)[None]}
    outer, memory = jax.eval_shape(lambda key: weighting.init(key, job.data["pool"].sizes), jax.random.key(0))
    if not jax.tree.leaves((outer, memory)) and not weighting.needs_losses:
        return np.asarray(weighting.weights(outer, memory, ids, None), np.float64)[0]
    if name == job.main and (folder / FILE).exists():
        return np.asarray(read_weights(folder / FILE)["weight"], np.float64)
    why = "has not finished" if name == job.main else f"keeps the weights of {job.main} alone"
    raise InputError(f"{folder}: the run {why}: take --weights uniform, or a run whose main method is {name}")
