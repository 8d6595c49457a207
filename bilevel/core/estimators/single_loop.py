"""Rows of the table: the linear system of the implicit gradient, solved along the way."""

from __future__ import annotations

from bilevel.core.curvature import Curvature
from bilevel.core.estimators.settings import AnySettings
from bilevel.core.estimators.table import Estimator, Ingredients
from bilevel.core.solver import Solver, amigo, soba


def _soba(given: Ingredients) -> Solver:
    settings = given.settings
    return soba(
        given.problem,
        given.inner,
        given.outer,
        step_size=settings.step_size,
        damping=settings.damping,
        outer_start=given.outer_start,
    )


def _curvature(settings: AnySettings) -> Curvature:
    return Curvature(
        settings.curvature, settings.damping, settings.relative_damping, reuse=bool(settings.reuse)
    )


def _amigo(given: Ingredients) -> Solver:
    settings = given.settings
    return amigo(
        given.problem,
        given.inner,
        given.outer,
        linear_steps=settings.iterations,
        step_size=settings.step_size,
        curvature=_curvature(settings),
        outer_start=given.outer_start,
    )


SINGLE_LOOP = (
    Estimator(
        name="soba",
        family="single loop",
        formula="q <- q - step [(H + damping) q - grad upper], once a step, beside inner and outer variables",
        when="a stream of batches, outer variables that move slowly",
        cost="1 gradient + 1 Hessian product, which holds the lower gradient and the cross term",
        memory="q and the tape of one product",
        assumes="positive curvature; q keeps up with the inner variables",
        reads=("step_size", "damping"),
        inverts=True,
        solver=_soba,
        references="Dagréou et al. 2022 (SOBA)",
    ),
    Estimator(
        name="amigo",
        family="single loop",
        formula="the same, `iterations` times a step, after the lower steps and from the last step's q",
        when="as soba, where one step on q is too few",
        cost="1 gradient + 1 jvp + 2 to 3 gradients an iteration, and one product more",
        memory="3 vectors and the tape of one product",
        assumes="positive curvature, and a step below 2 / (largest eigenvalue)",
        reads=("iterations", "step_size", "curvature", "damping", "relative_damping", "reuse"),
        inverts=True,
        solver=_amigo,
        references="Arbel & Mairal 2022 (AmIGO)",
    ),
)
