"""Rows of the table: rules that solve a linear system with the lower level's second derivative."""

from __future__ import annotations

from collections.abc import Callable

from bilevel.core.adjoint import conjugate_gradient, dense, neumann, nystrom
from bilevel.core.curvature import Curvature
from bilevel.core.estimators.settings import AnySettings
from bilevel.core.estimators.table import Estimator, alternating_with
from bilevel.core.hypergradient import Adjoint, Hypergradient, implicit


def _curvature(settings: AnySettings) -> Curvature:
    return Curvature(
        settings.curvature, settings.damping, settings.relative_damping, reuse=bool(settings.reuse)
    )


def _conjugate_gradient(settings: AnySettings) -> Adjoint:
    return conjugate_gradient(
        settings.iterations, _curvature(settings), settings.tolerance, settings.warm_start
    )


def _neumann(settings: AnySettings) -> Adjoint:
    return neumann(settings.iterations, _curvature(settings), settings.step_size, settings.warm_start)


def _nystrom(settings: AnySettings) -> Adjoint:
    undamped = settings.damping == 0 and settings.relative_damping == 0
    relative = 1e-2 if undamped else settings.relative_damping
    curvature = Curvature(settings.curvature, settings.damping, relative, reuse=bool(settings.reuse))
    return nystrom(settings.rank, curvature)


def _dense(settings: AnySettings) -> Adjoint:
    return dense(_curvature(settings))


_MATRIX = ("curvature", "damping", "relative_damping", "reuse")
"""Settings of the matrix, which all of these read."""


def _row(adjoint: Callable[[AnySettings], Adjoint], reads: tuple[str, ...] = (), **texts: str) -> Estimator:
    def hypergradient(settings: AnySettings) -> Hypergradient:
        return implicit(adjoint(settings))

    return Estimator(
        family="implicit",
        reads=(*reads, *_MATRIX),
        inverts=True,
        solver=alternating_with(hypergradient),
        hypergradient=hypergradient,
        **texts,  # type: ignore[arg-type]
    )


_OPTIMUM = (
    "a lower level near its optimum, with positive curvature there (gauss_newton or damping make it so)"
)

IMPLICIT = (
    _row(
        _conjugate_gradient,
        name="conjugate_gradient",
        formula="q = (H + damping)^-1 grad upper, by conjugate gradients",
        when="the lower level is solved: heads, adapters, convex problems; the accurate one",
        cost="1 gradient + 1 jvp + 2 gradients an iteration",
        memory="4 vectors and the tape of one product (about 2 gradients)",
        assumes=_OPTIMUM,
        reads=("iterations", "tolerance", "warm_start"),
        references="Pedregosa 2016",
    ),
    _row(
        _neumann,
        name="neumann",
        formula="q = step * sum over k of (I - step (H + damping))^k grad upper",
        when="as conjugate_gradient, where its stop at negative curvature is unwanted or steps must be few",
        cost="1 gradient + 1 jvp + 2 gradients a term, and 20 for the step size unless it is given",
        memory="3 vectors and the tape of one product",
        assumes=_OPTIMUM + ", and a step below 2 / (largest eigenvalue)",
        reads=("iterations", "step_size", "warm_start"),
        references="Lorraine et al. 2020",
    ),
    _row(
        _nystrom,
        name="nystrom",
        formula="q = (H_r + damping)^-1 grad upper, H_r a random sketch of rank r",
        when="few eigenvalues stand out, and products may run at once",
        cost="1 gradient + 1 jvp + 2 (rank + 1) gradients",
        memory="2 rank vectors",
        assumes=_OPTIMUM + "; the damping is at the level of the eigenvalues that the sketch misses",
        reads=("rank",),
        references="Hataya & Yamada 2023; Frangella et al. 2023",
    ),
    _row(
        _dense,
        name="dense",
        formula="q = (H + damping)^-1 grad upper, from the matrix itself",
        when="checks, and inner variables up to some thousands",
        cost="1 gradient + 1 jvp + 2 gradients a variable",
        memory="3 matrices of variables x variables",
        assumes="a lower level near its optimum; refuses more than 4,096 variables",
        references="-",
    ),
)
