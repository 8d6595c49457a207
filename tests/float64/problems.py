"""Bilevel problems whose hypergradient is known, by a dense solve that shares no code with the library."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bilevel.core import Mean, Problem, RowLosses, RowProblem
from bilevel.core.tree import PyTree
from bilevel.weighting import row_logits

RIDGE = 0.1


class Known(NamedTuple):
    """A problem at a point where the lower level is solved.

    Attributes:
        inner: the lower level's stationary point at `outer`.
        lower_batch, upper_batch: without micro-batch axis.
        optimizer: gradient descent with step 1 / (largest eigenvalue).
        reference: the hypergradient by the implicit function theorem.
    """

    problem: Problem | RowProblem
    outer: PyTree
    inner: PyTree
    lower_batch: dict
    upper_batch: dict
    optimizer: optax.GradientTransformation
    reference: PyTree

    @property
    def sizes(self) -> dict[str, int]:
        return {"row_id": len(self.outer)} if isinstance(self.problem, RowProblem) else {}


def general(problem: Problem | RowProblem) -> Problem:
    return problem.general() if isinstance(problem, RowProblem) else problem


def known(problem: Problem | RowProblem, outer: PyTree, start: PyTree, lower_batch: dict, upper_batch: dict):
    """Solves the lower level by Newton's method and differentiates through its optimum."""
    lower, upper = general(problem)
    flat_inner, unravel = ravel_pytree(start)
    flat_outer, unravel_outer = ravel_pytree(outer)

    def lower_value(outer, inner):
        return lower(unravel_outer(outer), unravel(inner), lower_batch).value

    def upper_value(outer, inner):
        return upper(unravel_outer(outer), unravel(inner), upper_batch).value

    gradient, hessian = jax.jit(jax.grad(lower_value, 1)), jax.jit(jax.hessian(lower_value, 1))
    for _ in range(50):
        slope = np.asarray(gradient(flat_outer, flat_inner))
        if np.linalg.norm(slope) < 1e-13:
            break
        flat_inner = flat_inner - np.linalg.solve(np.asarray(hessian(flat_outer, flat_inner)), slope)
    assert np.linalg.norm(gradient(flat_outer, flat_inner)) < 1e-12

    curvature = np.asarray(hessian(flat_outer, flat_inner))
    cross = np.asarray(jax.jit(jax.jacfwd(gradient, 0))(flat_outer, flat_inner))
    above_outer, above_inner = map(np.asarray, jax.grad(upper_value, (0, 1))(flat_outer, flat_inner))
    reference = above_outer - cross.T @ np.linalg.solve(curvature, above_inner)
    step_size = 1.0 / float(np.abs(np.linalg.eigvalsh(curvature)).max())
    return Known(
        problem,
        outer,
        unravel(flat_inner),
        lower_batch,
        upper_batch,
        optax.sgd(step_size),
        unravel_outer(jnp.asarray(reference)),
    )


def _quadratic(eigenvalues: list[float], seed: int) -> Known:
    """lower = w.A w / 2 - w.(B outer + c), upper = |w - t|^2 / 2 + |outer|^2 / 10; inner in a nested tree."""
    rng, n = np.random.default_rng(seed), len(eigenvalues)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = jnp.asarray(basis @ np.diag(eigenvalues) @ basis.T)
    mixing, shift, target = (jnp.asarray(rng.normal(size=s)) for s in ((n, 4), n, n))

    def flat(inner):
        return jnp.concatenate([jnp.ravel(inner["a"]), inner["b"]["c"]])

    def lower(outer, inner, batch):
        w = flat(inner)
        return Mean(batch["one"] * (0.5 * w @ matrix @ w - w @ (mixing @ outer + shift)), batch["one"])

    def upper(outer, inner, batch):
        gap = flat(inner) - target
        return Mean(batch["one"] * (0.5 * gap @ gap + 0.1 * outer @ outer), batch["one"])

    start = {"a": jnp.zeros((2, n // 4)), "b": {"c": jnp.zeros(n - 2 * (n // 4))}}
    batch = {"one": np.ones(())}
    return known(Problem(lower, upper), jnp.asarray(rng.normal(size=4)), start, batch, batch)


def _halves(features: np.ndarray, labels: np.ndarray, lower_rows: int) -> tuple[dict, dict]:
    order = np.random.default_rng(0).permutation(len(labels))
    scaled = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1.0)
    lower, upper = order[:lower_rows], order[lower_rows : 2 * lower_rows]
    return (
        {"x": scaled[lower], "y": labels[lower], "row_id": np.arange(len(lower), dtype=np.int32)},
        {"x": scaled[upper], "y": labels[upper], "row_id": np.full(len(upper), -1, np.int32)},
    )


def _logistic(params, batch):
    margin = (2 * batch["y"] - 1) * (batch["x"] @ params["weights"] + params["bias"])
    return jnp.logaddexp(0.0, -margin)


def _breast_cancer() -> tuple[dict, dict, dict]:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    batches = _halves(data.data, data.target.astype(np.float64), 284)
    return (*batches, {"weights": jnp.zeros(30), "bias": jnp.zeros(())})


def _ridge_of_features() -> Known:
    """Outer variables: the logarithm of one ridge strength a feature."""
    lower_batch, upper_batch, start = _breast_cancer()

    def lower(outer, inner, batch):
        losses = _logistic(inner, batch)
        ridge = 0.5 * (jnp.sum(jnp.exp(outer) * inner["weights"] ** 2) + RIDGE * inner["bias"] ** 2)
        return Mean(jnp.sum(losses + ridge), 1.0 * losses.size)

    def upper(outer, inner, batch):
        losses = _logistic(inner, batch)
        return Mean(jnp.sum(losses), 1.0 * losses.size)

    return known(Problem(lower, upper), jnp.full(30, np.log(RIDGE)), start, lower_batch, upper_batch)


def _weighted_rows(losses, start, lower_batch, upper_batch) -> Known:
    """Outer variables: one logit a row, away from uniform."""

    def row_losses(inner, batch):
        ridge = 0.5 * RIDGE * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(inner))
        one = losses(inner, batch)
        return RowLosses(one + ridge, jnp.ones_like(one))

    def upper(outer, inner, batch):
        one = losses(inner, batch)
        return Mean(jnp.sum(one), 1.0 * one.size)

    problem = RowProblem(row_losses, row_logits(), upper)
    outer = 0.3 * jax.random.normal(jax.random.key(0), (len(lower_batch["y"]),))
    return known(problem, outer, start, lower_batch, upper_batch)


def _digits_losses(params, batch):
    logits = batch["x"] @ params["weights"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])


def _digits() -> Known:
    from sklearn.datasets import load_digits

    data = load_digits()
    pooled = data.images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
    start = {"weights": jnp.zeros((16, 10)), "bias": jnp.zeros(10)}
    return _weighted_rows(_digits_losses, start, *_halves(pooled, data.target, 200))


def _rows_of_breast_cancer() -> Known:
    lower_batch, upper_batch, start = _breast_cancer()
    return _weighted_rows(_logistic, start, lower_batch, upper_batch)


PROBLEMS = {
    "quadratic": lambda: _quadratic(list(np.geomspace(1.0, 20.0, 12)), seed=0),
    "indefinite quadratic": lambda: _quadratic([3.0, 2.0, 1.0, -0.5, 4.0, 1.5, 2.5, 0.7], seed=1),
    "breast_cancer, ridges": _ridge_of_features,
    "breast_cancer, rows": _rows_of_breast_cancer,
    "digits, rows": _digits,
}
"""What the outer variables are stands behind the data set's name."""


@lru_cache
def problem(name: str) -> Known:
    return PROBLEMS[name]()
