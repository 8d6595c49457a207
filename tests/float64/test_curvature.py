"""Products with the second derivative against the dense matrix, and what rules make of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bilevel.core import Curvature, EstimatorSettings, OutputLoss, Problem, RowLosses, RowProblem
from bilevel.core.curvature import HESSIAN, largest_curvature
from bilevel.core.estimators import ESTIMATORS
from bilevel.core.tree import PyTree
from bilevel.weighting import row_logits
from tests.zoo import network, point_of, predict, relative_error, rows, upper

POOL = 12
BATCH = rows(1, POOL, dtype=np.float64)
LOGITS = 0.5 * jax.random.normal(jax.random.key(1), (POOL,))


def squared_errors(outputs, batch):
    """Of two-dimensional outputs, so that the loss has a matrix for a second derivative."""
    error = outputs["fit"] - batch["y"]
    return RowLosses((jnp.cosh(error) - 1 + 0.1 * outputs["fit"] ** 2) * batch["count"], batch["count"])


ROW_LOSSES = OutputLoss(lambda params, batch: {"fit": predict(params, batch["x"])}, squared_errors)


def problems(reduction) -> dict[str, Problem | RowProblem]:
    by_rows = RowProblem(ROW_LOSSES, row_logits(), upper, reduction=reduction)

    def loss(outer, outputs, batch):
        weights = by_rows.weighting.weights(outer, (), batch, None)
        return squared_errors(outputs, batch).weighted(weights, reduction)

    return {"rows": by_rows, "functions": Problem(OutputLoss(ROW_LOSSES.outputs, loss), upper)}


def matrix(product, like: PyTree) -> np.ndarray:
    flat, unravel = ravel_pytree(like)
    return np.asarray(jax.vmap(lambda e: ravel_pytree(product(unravel(e)))[0])(jnp.eye(flat.size)))


def dense(kind, params, reduction):
    """By jax.hessian, of the mean at fixed weights."""
    flat, unravel = ravel_pytree(params)
    weights = row_logits().weights(LOGITS, (), BATCH, None)

    def value(outputs):
        return squared_errors(outputs, BATCH).weighted(weights, reduction).value

    def outputs(flat):
        return ROW_LOSSES.outputs(unravel(flat), BATCH)

    if kind == "hessian":
        return jax.hessian(lambda flat: value(outputs(flat)))(flat)
    jacobian = jax.jacobian(outputs)(flat)["fit"]
    return jacobian.T @ jax.hessian(value)(outputs(flat))["fit"]["fit"] @ jacobian


@pytest.mark.parametrize("reduction", ["row", "token", "sum"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_are_those_of_the_weighted_mean_at_fixed_weights(kind, reduction):
    params = network(jax.random.key(0), dtype=jnp.float64)
    expected = dense(kind, params, reduction)
    for problem in problems(reduction).values():
        for pieces, reuse in ((1, False), (3, False), (3, True)):
            levels, point = point_of(problem, LOGITS, params, BATCH, pieces)
            product = Curvature(kind, reuse=reuse).product(levels, point)
            assert relative_error(matrix(product, params), expected) < 1e-12
    assert (np.linalg.eigvalsh(expected)[0] < -1e-3) == (kind == "hessian")


@pytest.mark.parametrize("name", ["conjugate_gradient", "neumann", "nystrom", "dense"])
def test_gauss_newton_without_outputs_is_refused(name):
    problem = RowProblem(lambda params, batch: ROW_LOSSES(params, batch), row_logits(), upper)
    params = network(jax.random.key(0), dtype=jnp.float64)
    levels, _ = point_of(problem, LOGITS, params, BATCH)
    row = ESTIMATORS[name]
    assert row.hypergradient is not None
    with pytest.raises(ValueError, match="OutputLoss"):
        row.hypergradient(EstimatorSettings(name, curvature="gauss_newton")).init(levels, params)


def test_power_iteration_finds_the_largest_absolute_eigenvalue_and_relative_damping_is_a_share_of_it():
    values = jnp.array([1.0, -9.0, 3.0, 0.1])
    like = {"a": jnp.zeros(4)}

    def product(vector):
        return {"a": values * vector["a"]}

    found = largest_curvature(product, like, jax.random.key(0), 40)
    assert float(found) == pytest.approx(9.0, rel=1e-6)
    rough = largest_curvature(product, like, jax.random.key(0), 3)
    assert 5.0 < float(rough) <= 9.0
    curvature = Curvature(damping=0.5, relative_damping=0.1, power_iterations=40)
    assert float(curvature.damping_at(product, like, jax.random.key(0))) == pytest.approx(1.4, rel=1e-6)
    assert float(HESSIAN.damping_at(product, like, jax.random.key(0))) == 0.0


@pytest.mark.parametrize(
    "bad", [{"relative_damping": -0.1}, {"damping": -1.0}, {"power_iterations": 0}], ids=str
)
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Curvature(**bad)
