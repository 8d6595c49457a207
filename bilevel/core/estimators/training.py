"""Rows of the table: derivatives of training itself, by the chain rule or by differences."""

from __future__ import annotations

from bilevel.core.estimators.settings import AnySettings
from bilevel.core.estimators.table import Estimator, alternating_with
from bilevel.core.hypergradient import Hypergradient
from bilevel.core.unroll import unroll, whole_run
from bilevel.core.zeroth_order import evolution_strategies, pzobo


def _unroll(settings: AnySettings) -> Hypergradient:
    return unroll(settings.mode, settings.last_steps)


def _whole_run(settings: AnySettings) -> Hypergradient:
    return whole_run(settings.segment)


def _evolution_strategies(settings: AnySettings) -> Hypergradient:
    return evolution_strategies(settings.samples, settings.radius)


def _pzobo(settings: AnySettings) -> Hypergradient:
    return pzobo(settings.samples, settings.radius)


TRAINING = (
    Estimator(
        name="unroll",
        family="unrolled",
        formula="d upper(inner_K) / d outer through the K lower steps and the optimizer",
        when="what matters is K steps of training and not their limit; learning rates; weight networks",
        cost="1 gradient + 1 jvp + (K - 1) Hessian products (2 to 3 gradients each)",
        memory="K iterates with optimizer state and gradient, and the tape of one product",
        assumes="an optimizer with a derivative, past its first steps; looks K steps ahead",
        reads=("mode", "last_steps"),
        solver=alternating_with(_unroll),
        hypergradient=_unroll,
        references="Maclaurin et al. 2015; Franceschi et al. 2017; Shaban et al. 2019; Kemaev et al. 2025 (MixFlow-MG)",
    ),
    Estimator(
        name="whole_run",
        family="unrolled",
        formula="the same number, from starts of segments that are run again with records, one at a time",
        when="K steps whose records do not fit; for a whole training, `python -m bilevel.attribute`",
        cost="2 K gradients + K Hessian products (2 to 3 gradients each)",
        memory="2 sqrt(K) iterates with optimizer state, sqrt(K) gradients, and the tape of one product",
        assumes="as unroll; over many rough steps an exact derivative tells of noise",
        reads=("segment",),
        solver=alternating_with(_whole_run),
        hypergradient=_whole_run,
        references="Engstrom et al. 2025 (REPLAY); Ilyas & Engstrom 2025 (MAGIC)",
    ),
    Estimator(
        name="evolution_strategies",
        family="zeroth order",
        formula="mean over e of [upper(outer + r e) - upper(outer - r e)] / (2 r) e, each after K lower steps",
        when="a handful of outer variables; a lower level or an upper loss without derivatives",
        cost="2 K gradients a sample",
        memory="1 more iterate",
        assumes="about as many samples as outer variables: for a weight a row it is noise",
        reads=("samples", "radius"),
        solver=alternating_with(_evolution_strategies),
        hypergradient=_evolution_strategies,
        references="Salimans et al. 2017; Choromanski et al. 2018",
    ),
    Estimator(
        name="pzobo",
        family="zeroth order",
        formula="grad_outer upper + mean over e of < [inner_K(outer + r e) - inner_K(outer)] / r, grad upper > e",
        when="as evolution_strategies, where the upper level has a derivative",
        cost="1 gradient + K gradients a sample",
        memory="1 more iterate",
        assumes="as evolution_strategies; one-sided differences, so a smaller radius",
        reads=("samples", "radius"),
        solver=alternating_with(_pzobo),
        hypergradient=_pzobo,
        references="Sow et al. 2022 (PZOBO)",
    ),
)
