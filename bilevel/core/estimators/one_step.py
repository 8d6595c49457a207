"""Rows of the table: estimators that differentiate through one lower step."""

from __future__ import annotations

from bilevel.core.adjoint import identity, optimizer_aware
from bilevel.core.estimators.settings import AnySettings
from bilevel.core.estimators.table import Estimator, alternating_with
from bilevel.core.hypergradient import Hypergradient, implicit


def _identity(settings: AnySettings) -> Hypergradient:
    return implicit(identity(1.0 if settings.step_size is None else settings.step_size), _reuse(settings))


def _optimizer_aware(settings: AnySettings) -> Hypergradient:
    return implicit(optimizer_aware(), _reuse(settings))


def _reuse(settings: AnySettings) -> bool:
    return settings.reuse is not False


ONE_STEP = (
    Estimator(
        name="identity",
        family="one step",
        formula="q = step_size * grad upper",
        when="the cheapest: rows are to be ranked, and the inner optimizer is close to gradient descent",
        cost="1 gradient + 1 jvp, of which the lower step's forward pass is shared",
        memory="q, and the lower gradient's tape meanwhile (not with `reuse=False`)",
        assumes="the lower level takes gradient steps; looks one step ahead, so curvature does not enter",
        reads=("step_size", "reuse"),
        solver=alternating_with(_identity),
        hypergradient=_identity,
        references="Luketina et al. 2016 (T1-T2)",
    ),
    Estimator(
        name="optimizer_aware",
        family="one step",
        formula="q = - (d update / d gradient)^T grad upper",
        when="the default for language models under Adam",
        cost="1 gradient + 1 jvp, of which the lower step's forward pass is shared, + 1 optimizer step backward",
        memory="q, the optimizer step's tape (about 3 x parameters), and the lower gradient's meanwhile (as above)",
        assumes="an optimizer with a derivative, past its first steps; looks one step ahead",
        reads=("reuse",),
        solver=alternating_with(_optimizer_aware),
        hypergradient=_optimizer_aware,
        references="Choe et al. 2023 (SAMA), made exact for any optax chain",
    ),
)
