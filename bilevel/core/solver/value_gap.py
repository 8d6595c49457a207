"""Value-gap solvers: one joint descent of upper + multiplier * (lower - value), the value found anew in each step."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.hypergradient import Diagnostics
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import descend, take_lower_steps
from bilevel.core.problem import Batch, Problem, RowProblem
from bilevel.core.solver.solver import (
    BOTH,
    Level,
    Solver,
    SolverState,
    StepReport,
    conclude,
    initial_state,
    visited_rows,
    weighting_of,
)
from bilevel.core.tree import PyTree, add_scaled, all_finite, norm, vdot


class Slopes(NamedTuple):
    """What a multiplier may depend on.

    Attributes:
        step: of the solver.
        gap_squared: squared norm of the gap's gradient, over inner and outer variables.
        alignment: inner product of the gap's gradient and the upper level's.
    """

    step: Array
    gap_squared: Float[Array, ""]
    alignment: Float[Array, ""]


class Factors(NamedTuple):
    """What the two gradients are multiplied by before they are added: a step descends upper * U + gap * G."""

    upper: Float[Array, ""]
    gap: Float[Array, ""]


Multiplier = Callable[[Slopes], Factors]


def fixed_multiplier(gamma: float | Callable[[Array], Array]) -> Multiplier:
    """Share 1 / (1 + gamma) of the upper level and gamma / (1 + gamma) of the gap, gamma fixed or scheduled (V-PBGD).

    Shares that add up to one keep one learning rate good for every gamma. Both levels feel the gap's stiffness, so
    both take the share: the outer gradient is 1 / (1 + gamma) of a hypergradient, as in `penalty`.

    Args:
        gamma: a number, or a function of the solver's step.

    References:
        Shen & Chen, On Penalty-based Bilevel Gradient Descent Method (V-PBGD), ICML 2023.
    """

    def factors(slopes: Slopes) -> Factors:
        value = jnp.asarray(gamma(slopes.step) if callable(gamma) else gamma, jnp.float32)
        return Factors(1 / (1 + value), value / (1 + value))

    return factors


def dynamic_multiplier(eta: float = 0.5) -> Multiplier:
    """The least multiple of the gap under which it falls at a rate of eta times its squared slope (BOME).

        U + m G,   m = max(eta |grad gap|^2 - < grad upper, grad gap >, 0) / |grad gap|^2

    It is zero where descending the upper level alone shrinks the gap fast enough, and where there is no gap. However
    large m is where the gap is small, m grad gap is no longer than the two gradients together.

    Args:
        eta: share of the gap's own steepest descent, in (0, 1].

    References:
        Ye, Liu, Wright, Stone & Liu, BOME! Bilevel Optimization Made Easy, NeurIPS 2022.
    """
    if not 0 < eta <= 1:
        raise ValueError(f"dynamic_multiplier: eta must be in (0, 1], not {eta}")

    def factors(slopes: Slopes) -> Factors:
        wanted = jnp.maximum(eta * slopes.gap_squared - slopes.alignment, 0.0)
        multiple = jnp.where(slopes.gap_squared > 0, wanted / _positive(slopes.gap_squared), 0.0)
        return Factors(jnp.ones_like(multiple), multiple)

    return factors


def value_gap(
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    multiplier: Multiplier,
    outer_start: PyTree | None = None,
) -> Solver:
    """Descends the upper level plus a multiple of the gap, gap = lower(outer, inner) - lower(outer, value copy).

    Each solver step, on K lower batches,

        value copy <- inner, then K lower steps: an approximate minimiser, held constant below
        inner      <- inner - step of u grad_inner upper + m grad_inner lower
        outer      <- outer - step of u grad_outer upper + m [d_outer lower(inner) - d_outer lower(copy)]

    with the difference on the last batch, and the factors u and m the multiplier's. The copy is made for the step and
    not kept.

    With `fixed_multiplier` it is V-PBGD, with `dynamic_multiplier` BOME. Unlike in `penalty`, whose two copies start
    together and take the same steps, the copy here is K steps nearer to the lower optimum than the inner variables:
    take K large enough, or the gap measures training that is still to come, multiplied by the multiplier.

    Args:
        problem: the bilevel problem.
        inner: optimizer of inner variables and copy; the copy goes on from the inner variables' optimizer state.
        outer: optimizer of the outer variables; receives `visited=` (row ids of the last batch) if it asks.
        multiplier: from slopes to the two factors.
        outer_start: initial outer variables, for a general problem only.

    References:
        Shen & Chen, On Penalty-based Bilevel Gradient Descent Method (V-PBGD), ICML 2023.
        Ye et al., BOME!, NeurIPS 2022.
    """
    level = lower_level(problem)
    start_outer = weighting_of(problem, outer_start)

    def init(key: Array, params: PyTree) -> SolverState:
        outer_variables, memory = start_outer(jax.random.fold_in(key, 0))
        return initial_state(jax.random.fold_in(key, 1), params, outer_variables, memory, (), inner, outer)

    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: Collection[Level] = BOTH
    ) -> tuple[SolverState, StepReport]:
        outer_variables, begun = state.outer.inner, state.inner
        batches = jax.tree.map(lambda x: x[-1], lower_batches)
        copy = take_lower_steps(level, inner, outer_variables, state.memory, begun, lower_batches)
        weighed = copy.weighed
        passed = level.gradient(outer_variables, weighed.weights, begun.inner, batches)
        value = level.gradient(outer_variables, weighed.weights, copy.end.inner, batches)
        upper, (upper_outer, upper_inner) = mean_value_and_gradient(
            problem.upper, (outer_variables, begun.inner), upper_batches
        )
        above = (weighed.with_penalty(upper_outer), upper_inner)
        gap = (weighed.pull_back(optax.tree.sub(passed.signal, value.signal)), passed.gradient)
        factors = multiplier(Slopes(state.step, vdot(gap, gap), vdot(above, gap)))
        gradient, mixed = add_scaled(_scaled(above, factors.upper), factors.gap, gap)

        new = state.replace(
            inner=descend(inner, begun, mixed),
            memory=copy.memory,
            key=jax.random.split(state.key)[0],
        )
        finite = all_finite((passed.loss, upper, value.loss, new.inner.inner))
        diagnostics = None
        if "outer" in updates:
            new = new.replace(outer=descend(outer, state.outer, gradient, **visited_rows(lower_batches)))
            finite &= all_finite(new.outer.inner)
            diagnostics = Diagnostics(
                upper_gradient_norm=norm(upper_inner),
                hypergradient_norm=norm(gradient),
                stationarity=norm(passed.gradient) / _positive(norm(upper_inner)),
                multiplier=factors.gap / factors.upper,
                finite=finite,
            )
        return conclude(state, new, updates, finite, passed, weighed, batches, upper, diagnostics)

    return Solver(init, step)


def _scaled(tree: PyTree, factor: Array) -> PyTree:
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def _positive(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
