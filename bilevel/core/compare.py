"""Is a hypergradient right? Any estimator, on the user's own problem, against a reference that shares none of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from bilevel.core.curvature import largest_curvature
from bilevel.core.estimators import ESTIMATORS, EstimatorName, EstimatorSettings, make_solver
from bilevel.core.findings import HypergradientCheck
from bilevel.core.hypergradient import Diagnostics, Hypergradient, Iterate, stationarity
from bilevel.core.problem import NO_SIZES, Batch, Problem, RowProblem, Sizes
from bilevel.core.reference import (
    Reference,
    dense_reference,
    finite_difference_reference,
    value_after_steps,
    value_at_optimum,
)
from bilevel.core.solver import Level, SolverState, alternating
from bilevel.core.tables import sizes_of
from bilevel.core.tree import PyTree, all_finite, norm, size, vdot

_POWER_ITERATIONS = 20
_INNER: tuple[Level, ...] = ("inner",)


class EvaluationPoint(NamedTuple):
    """Where a hypergradient is checked.

    Attributes:
        outer: outer variables.
        inner: inner variables; for a check against the optimum, as far trained as they will be in use.
        lower_batch: one batch of the lower level, without further axes.
        upper_batch: one batch of the upper level.
        optimizer: the inner optimizer; None for gradient descent at a step that suits the curvature.
        optimizer_state: its state; None for a fresh one.
        memory: the weighting's memory; None for a fresh one.
        sizes: how many rows there are, where the outer variables do not tell (`Weighting.tables`).
    """

    outer: PyTree
    inner: PyTree
    lower_batch: Batch
    upper_batch: Batch
    optimizer: optax.GradientTransformation | None = None
    optimizer_state: PyTree | None = None
    memory: PyTree | None = None
    sizes: Sizes = NO_SIZES


def check_hypergradient(
    problem: Problem | RowProblem,
    estimator: EstimatorName | EstimatorSettings | Hypergradient,
    point: EvaluationPoint,
    *,
    lower_steps: int = 1,
    horizon: int | None = None,
    settle: int = 200,
    directions: int = 8,
    dense_limit: int = 1000,
    solve_steps: int = 300,
    key: Array | None = None,
    reference: Reference | None = None,
) -> HypergradientCheck:
    """Compares an estimator's hypergradient with a reference on one problem at one point.

    The reference is the derivative of the value function, outer -> upper(outer, inner*(outer)):

    - the implicit function theorem with a dense matrix at the optimum, which Newton's method finds, while there are
      at most `dense_limit` inner variables;
    - otherwise central differences of the value function along random directions, the lower level minimised anew
      by L-BFGS for each;
    - with a `horizon`, central differences of the upper loss after that many steps of the inner optimizer: what
      estimators that look few steps ahead are about, and all that means something for a language model, whose
      lower level is never at its optimum.

    An outer penalty is left out on both sides: it is differentiated exactly in any case. Work in float64 for errors
    below about 1e-4.

    Args:
        problem: the bilevel problem.
        estimator: a name of the table, settings, or an estimator of one's own.
        point: where.
        lower_steps: steps of the inner optimizer that one estimate is made around, as in training.
        horizon: steps that the reference looks ahead; None for the optimum.
        settle: steps at frozen outer variables before the estimate of a penalty or single-loop solver is read: their
            copies and directions begin at the point and must find their places.
        directions: of finite differences; as many as there are outer variables or more give the whole gradient.
        dense_limit: most inner variables for the dense reference.
        solve_steps: L-BFGS steps a value.
        key: of random directions and estimators; None for key 0.
        reference: of an earlier check at the same point, to spare finding it again for another estimator.

    Returns:
        HypergradientCheck.

    Raises:
        ValueError: if the estimator refuses the problem or the optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> from bilevel.core import EvaluationPoint, Mean, Problem, check_hypergradient
        >>> def lower(outer, inner, batch):  # ridge regression with a learned strength
        ...     ridge = jnp.exp(outer) * jnp.sum(inner**2)
        ...     return Mean(jnp.sum((batch["x"] @ inner - batch["y"]) ** 2) + ridge, 1)
        >>> def upper(outer, inner, batch):
        ...     return Mean(jnp.sum((batch["x"] @ inner - batch["y"]) ** 2), 1)
        >>> train = {"x": jnp.array([[1.0, 0.5], [0.0, 2.0], [1.0, 1.0]]), "y": jnp.array([1.0, -1.0, 0.5])}
        >>> trusted = {"x": jnp.array([[1.0, 0.0]]), "y": jnp.array([1.0])}
        >>> point = EvaluationPoint(jnp.array(0.0), jnp.array([0.8, -0.4]), train, trusted)
        >>> print(check_hypergradient(Problem(lower, upper), "identity", point).cosine)
        1.0
    """
    plain: Problem
    if isinstance(problem, RowProblem):
        sizes = {**sizes_of(problem.weighting, point.outer), **point.sizes}
        memory = problem.weighting.init(jax.random.key(0), sizes)[1] if point.memory is None else point.memory
        point, problem = point._replace(memory=memory, sizes=sizes), problem._replace(outer_penalty=None)
        plain = problem.general(memory)
    else:
        plain = problem
    key = jax.random.key(0) if key is None else key
    if point.optimizer is None:
        point = point._replace(optimizer=_gradient_descent(plain, point, key))

    made = _estimate(problem, estimator, point, lower_steps, settle, key)
    estimate, diagnostics = made.gradient, made.diagnostics
    if reference is None:
        reference = _reference(plain, point, made.inner, horizon, directions, dense_limit, solve_steps, key)
    found = _slopes(estimate, reference)
    damping = _number(diagnostics.damping)
    seen = _number(diagnostics.curvature)
    curvatures = [
        *([] if seen is None or not np.isfinite(seen) else [seen - (damping or 0.0)]),
        *([] if reference.curvature is None else [reference.curvature]),
    ]
    return HypergradientCheck(
        estimate=estimate,
        family=made.family,
        descends=made.descends,
        cosine=_cosine(found, reference.slopes),
        relative_error=_relative_error(found, reference.slopes),
        finite=bool(diagnostics.finite) and bool(all_finite(estimate)),
        reference=reference,
        horizon=horizon,
        stationarity=_stationarity(plain, point, made.inner),
        curvature=min(curvatures, default=None),
        residual=_number(diagnostics.residual),
        damping=damping,
        convergence_error=(
            None if reference.at_point is None else _relative_error(reference.at_point, reference.slopes)
        ),
    )


class _Made(NamedTuple):
    """An estimate: the outer gradient, inner variables after the lower steps, what was seen, what the table says."""

    gradient: PyTree
    inner: PyTree
    diagnostics: Diagnostics
    family: str | None
    descends: str


def _estimate(
    problem: Problem | RowProblem,
    estimator: EstimatorName | EstimatorSettings | Hypergradient,
    point: EvaluationPoint,
    lower_steps: int,
    settle: int,
    key: Array,
) -> _Made:
    """The outer gradient that a solver would descend."""
    assert point.optimizer is not None
    family, descends, scale, settle_steps = None, "", 1.0, 0
    if isinstance(estimator, Hypergradient):
        solver = alternating(problem, point.optimizer, _recorded(), estimator, outer_start=point.outer)
    else:
        settings = EstimatorSettings(estimator) if isinstance(estimator, str) else estimator
        row = ESTIMATORS[settings.name]
        family, descends, scale = row.family, row.descends, row.scale(settings)
        settle_steps = settle if row.hypergradient is None else 0
        solver = make_solver(settings, problem, point.optimizer, _recorded(), outer_start=point.outer)

    state = solver.init(key, point.inner, point.sizes)
    kept = state.inner.optimizer if point.optimizer_state is None else point.optimizer_state
    state = state.replace(
        inner=Iterate(point.inner, kept),
        outer=state.outer._replace(inner=point.outer),
        memory=state.memory if point.memory is None else point.memory,
    )

    def stacked(batch: Batch, *axes: int) -> Batch:
        return {name: jnp.broadcast_to(value, (*axes, *jnp.shape(value))) for name, value in batch.items()}

    @jax.jit
    def run(state: SolverState) -> tuple[SolverState, Diagnostics]:
        lower, upper = stacked(point.lower_batch, lower_steps, 1), stacked(point.upper_batch, 1)
        if settle_steps:

            def move(state: SolverState, _: None) -> tuple[SolverState, None]:
                return solver.step(state, lower, upper, updates=_INNER)[0], None

            state, _ = jax.lax.scan(move, state, None, length=settle_steps)
        after, report = solver.step(state, lower, upper)
        assert report.diagnostics is not None  # both levels are updated
        return after, report.diagnostics.replace(finite=report.finite)

    after, diagnostics = run(state)
    gradient = optax.tree.scale(1.0 / scale, after.outer.optimizer)
    return _Made(gradient, after.inner.inner, jax.device_get(diagnostics), family, descends)


def _recorded() -> optax.GradientTransformation:
    """An outer optimizer that moves nothing and keeps the gradient as its state."""
    return optax.GradientTransformation(
        lambda params: optax.tree.zeros_like(params),
        lambda gradient, state, params=None: (optax.tree.zeros_like(gradient), gradient),
    )


def _reference(
    problem: Problem,
    point: EvaluationPoint,
    reached: PyTree,
    horizon: int | None,
    directions: int,
    dense_limit: int,
    solve_steps: int,
    key: Array,
) -> Reference:
    batches = point.lower_batch, point.upper_batch
    if horizon is None and size(point.inner) <= dense_limit:
        return dense_reference(problem, point.outer, reached, *batches)
    if horizon is None:
        value, what = value_at_optimum(problem, point.inner, *batches, solve_steps), "the solved lower level"
    else:
        assert point.optimizer is not None
        kept = point.optimizer_state
        kept = point.optimizer.init(point.inner) if kept is None else kept
        value = value_after_steps(problem, point.inner, point.optimizer, kept, *batches, horizon)
        what = f"{horizon} lower steps"
    return finite_difference_reference(value, what, point.outer, directions, jax.random.fold_in(key, 1))


def _slopes(gradient: PyTree, reference: Reference) -> np.ndarray:
    flat = np.asarray(ravel_pytree(gradient)[0])
    if reference.directions is None:
        return flat
    return np.asarray(jax.vmap(lambda direction: vdot(gradient, direction))(reference.directions))


def _gradient_descent(problem: Problem, point: EvaluationPoint, key: Array) -> optax.GradientTransformation:
    """Steps of 1 / (largest curvature), estimated as the rules estimate it."""

    def slope(inner: PyTree) -> PyTree:
        return jax.grad(lambda inner: problem.lower(point.outer, inner, point.lower_batch).value)(inner)

    def product(direction: PyTree) -> PyTree:
        return jax.jvp(slope, (point.inner,), (optax.tree.cast_like(direction, point.inner),))[1]

    largest = jax.jit(lambda key: largest_curvature(product, point.inner, key, _POWER_ITERATIONS))(key)
    return optax.sgd(1.0 / max(float(largest), float(jnp.finfo(jnp.float32).tiny)))


def _stationarity(problem: Problem, point: EvaluationPoint, inner: PyTree) -> float:
    below = jax.grad(lambda *a: problem.lower(*a).value, 1)(point.outer, inner, point.lower_batch)
    above = jax.grad(lambda *a: problem.upper(*a).value, 1)(point.outer, inner, point.upper_batch)
    return float(stationarity(below, norm(above)))


def _relative_error(found: np.ndarray, true: np.ndarray) -> float:
    length = float(np.linalg.norm(true))
    return float(np.linalg.norm(found - true)) / length if length > 0 else np.inf


def _cosine(found: np.ndarray, true: np.ndarray) -> float:
    lengths = float(np.linalg.norm(found) * np.linalg.norm(true))
    return float(np.vdot(found, true)) / lengths if lengths > 0 else 0.0


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
