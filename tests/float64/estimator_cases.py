"""Which error each estimator must keep to on which problem: the rows of tests and of docs/estimators.md."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel.core.estimators import ESTIMATORS, EstimatorName, EstimatorSettings, make_solver
from tests.float64.problems import Known, problem


class Case(NamedTuple):
    """One estimator on one problem.

    Attributes:
        problem: a name in `tests.float64.problems.PROBLEMS`.
        settings: of the estimator.
        error: bound on |found - reference| / |reference|; None where only the direction is claimed.
        cosine: bound on the cosine to the reference.
        more: settings with four times the work, which must never be worse; None where nothing can be increased.
        settle: steps at frozen outer variables before the estimate is read: copies part, directions settle.
        from_zero: whether those steps (and the estimate) start at zero instead of the optimum.
        lower_steps: lower steps around which the estimate is made, all on the same batch.
    """

    problem: str
    settings: EstimatorSettings
    error: float | None = None
    cosine: float | None = None
    more: dict[str, Any] | None = None
    settle: int = 0
    from_zero: bool = False
    lower_steps: int = 1

    @property
    def name(self) -> str:
        return f"{self.settings.name} ({described(self.settings) or 'default'}) on {self.problem}"


def described(settings: EstimatorSettings) -> str:
    """What differs from the defaults, as `iterations 20, damping 0.1`."""
    changed = {
        field.name.replace("_", " "): value
        for field in fields(settings)
        if field.name != "name" and (value := getattr(settings, field.name)) != field.default
    }
    return ", ".join(f"{name} {value}" for name, value in changed.items())


class Measured(NamedTuple):
    error: float
    cosine: float


def outer_gradient(
    known: Known,
    settings: EstimatorSettings,
    settle: int = 0,
    from_zero: bool = False,
    lower_steps: int = 1,
    compiled: bool = True,
):
    """The hypergradient that a solver descends, read off by an outer optimizer that applies it as it is."""
    solver = make_solver(settings, known.problem, known.optimizer, optax.sgd(1.0), outer_start=known.outer)
    inner = jax.tree.map(np.zeros_like, known.inner) if from_zero else known.inner
    upper = jax.tree.map(lambda x: np.asarray(x)[None], known.upper_batch)

    state = solver.init(jax.random.key(0), inner, known.sizes)
    state = state.replace(outer=state.outer._replace(inner=known.outer))

    def estimate(state):
        outer = state.outer.inner
        lower = jax.tree.map(lambda x: jnp.broadcast_to(x, (lower_steps, 1, *x.shape)), known.lower_batch)
        if settle:

            def move(state, _):
                return solver.step(state, lower, upper, updates=("inner",))[0], None

            state, _ = jax.lax.scan(move, state, None, length=settle)
        after, report = solver.step(state, lower, upper)
        scale = ESTIMATORS[settings.name].scale(settings)
        return jax.tree.map(lambda x, y: (x - y) / scale, outer, after.outer.inner), report

    return (jax.jit(estimate) if compiled else estimate)(state)


@cache
def _measured(
    name: str, settings: EstimatorSettings, settle: int, from_zero: bool, lower_steps: int
) -> Measured:
    known = problem(name)
    found, report = outer_gradient(known, settings, settle, from_zero, lower_steps)
    assert report.finite
    found, reference = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, known.reference)
    )
    lengths = np.linalg.norm(found) * np.linalg.norm(reference)
    return Measured(
        float(np.linalg.norm(found - reference) / np.linalg.norm(reference)),
        float(found @ reference / lengths),
    )


def measured(case: Case) -> Measured:
    return _measured(case.problem, case.settings, case.settle, case.from_zero, case.lower_steps)


def with_more_work(case: Case) -> Case:
    assert case.more is not None
    return case._replace(settings=replace(case.settings, **case.more))


def case(problem: str, name: EstimatorName, **options: Any) -> Case:
    """A case from the fields of `Case` and of `EstimatorSettings` together."""
    fields = {key: options.pop(key) for key in list(options) if key in Case._fields}
    return Case(problem, EstimatorSettings(name, **options), **fields)


QUADRATIC, INDEFINITE = "quadratic", "indefinite quadratic"
RIDGES, ROWS, DIGITS = "breast_cancer, ridges", "breast_cancer, rows", "digits, rows"

ONE_STEP = (
    case(RIDGES, "identity", cosine=0.9),
    case(DIGITS, "identity", cosine=0.8),
    case(RIDGES, "optimizer_aware", cosine=0.9),
    case(DIGITS, "optimizer_aware", cosine=0.8),
)
IMPLICIT = (
    case(QUADRATIC, "conjugate_gradient", iterations=3, error=0.2, more={"iterations": 12}),
    case(QUADRATIC, "conjugate_gradient", iterations=12, error=1e-10, more={"iterations": 48}),
    case(RIDGES, "conjugate_gradient", iterations=20, error=1e-8, more={"iterations": 80}),
    case(ROWS, "conjugate_gradient", iterations=20, error=1e-8, more={"iterations": 80}),
    case(DIGITS, "conjugate_gradient", iterations=5, error=0.1, more={"iterations": 20}),
    case(DIGITS, "conjugate_gradient", iterations=20, error=1e-7, more={"iterations": 80}),
    case(DIGITS, "conjugate_gradient", iterations=20, relative_damping=0.1, cosine=0.95),
    case(QUADRATIC, "neumann", iterations=50, error=0.1, more={"iterations": 200}),
    case(RIDGES, "neumann", iterations=200, error=1e-8, more={"iterations": 800}),
    case(ROWS, "neumann", iterations=200, error=1e-8, more={"iterations": 800}),
    case(DIGITS, "neumann", iterations=20, error=0.2, more={"iterations": 80}),
    case(DIGITS, "neumann", iterations=200, error=1e-7, more={"iterations": 800}),
    case(QUADRATIC, "nystrom", rank=12, damping=1e-7, error=1e-5),
    case(ROWS, "nystrom", rank=7, damping=0.1, error=0.6, more={"rank": 28}),
    case(ROWS, "nystrom", rank=31, damping=1e-7, error=1e-5),
    case(DIGITS, "nystrom", rank=40, damping=0.1, error=1.2, more={"rank": 160}),
    case(QUADRATIC, "dense", error=1e-12),
    case(INDEFINITE, "dense", error=1e-12),
    case(RIDGES, "dense", error=1e-11),
    case(ROWS, "dense", error=1e-11),
    case(DIGITS, "dense", error=1e-11),
)
FIRST_ORDER = (
    case(RIDGES, "penalty", gamma=100.0, cosine=0.97, settle=200),
    case(RIDGES, "value_gap", gamma=100.0, error=0.02, cosine=0.97, settle=200, lower_steps=20),
    case(RIDGES, "bome", cosine=0.95, settle=200, lower_steps=20),
)
SINGLE_LOOP = (
    case(QUADRATIC, "soba", error=1e-8, settle=2000),
    case(ROWS, "soba", error=1e-6, settle=500),
    case(RIDGES, "amigo", iterations=200, error=1e-8, more={"iterations": 800}),
)
TRAINING = (
    case(RIDGES, "unroll", last_steps=20, error=0.01, more={"last_steps": 80}, lower_steps=80),
    case(RIDGES, "unroll", error=1e-8, lower_steps=2000),
    case(ROWS, "unroll", error=1e-8, lower_steps=2000),
    case(DIGITS, "unroll", error=1e-2, lower_steps=200),
    case(RIDGES, "whole_run", error=1e-8, lower_steps=2000),
    case(DIGITS, "whole_run", segment=30, error=1e-2, lower_steps=200),
    case(RIDGES, "unroll", mode="forward", error=1e-8, lower_steps=500),
    case(
        RIDGES,
        "evolution_strategies",
        samples=8,
        radius=1e-3,
        cosine=0.3,
        more={"samples": 30},
        lower_steps=200,
    ),
    case(RIDGES, "evolution_strategies", samples=30, radius=1e-3, error=1e-5, lower_steps=500),
    case(RIDGES, "pzobo", samples=30, radius=1e-5, error=1e-3, lower_steps=500),
)

CASES = (*ONE_STEP, *IMPLICIT, *SINGLE_LOOP, *TRAINING, *FIRST_ORDER)
