"""Value-gap solvers: one joint descent of upper + multiplier * (lower - value), the value found anew in each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.hypergradient import Diagnostics, stationarity
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import descend, take_lower_steps
from bilevel.core.problem import Problem, RowProblem, Seen
from bilevel.core.ranges import check_ranges
from bilevel.core.solver.shell import Advance, Scene, solver_of
from bilevel.core.solver.solver import Solver
from bilevel.core.tree import PyTree, add_scaled, norm, vdot


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
    check_ranges({"eta": eta}, ("eta", 0 < eta <= 1, "in (0, 1]"))

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
    *,
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
        outer: optimizer of the outer variables; receives `batch=` (the last lower batch) if it asks.
        multiplier: from slopes to the two factors.
        outer_start: initial outer variables, for a general problem only.

    References:
        Shen & Chen, On Penalty-based Bilevel Gradient Descent Method (V-PBGD), ICML 2023.
        Ye et al., BOME!, NeurIPS 2022.
    """
    level = lower_level(problem)

    def advance(scene: Scene) -> Advance:
        state, outer_variables, begun = scene.state, scene.outer, scene.state.inner
        batches = scene.last_batches
        copy = take_lower_steps(
            level,
            inner,
            outer=outer_variables,
            memory=state.memory,
            start=begun,
            lower_batches=scene.lower_batches,
            step=state.step,
            of_value=True,
        )
        weighed = copy.weighed
        passed = level.gradient(outer_variables, weighed.weights, begun.inner, batches)
        value = level.gradient(outer_variables, weighed.weights, copy.end.inner, batches)
        upper, (upper_outer, upper_inner) = mean_value_and_gradient(
            problem.upper, (outer_variables, begun.inner), scene.upper_batches
        )
        above = (weighed.with_penalty(upper_outer), upper_inner)
        gap = (weighed.pull_back(optax.tree.sub(passed.signal, value.signal)), passed.gradient)
        factors = multiplier(Slopes(state.step, vdot(gap, gap), vdot(above, gap)))
        gradient, mixed = add_scaled(_scaled(above, factors.upper), factors.gap, gap)

        seen = Seen(batches, passed.row_losses, value.row_losses, state.step)
        stepped = Advance(
            descend(inner, begun, mixed),
            level.remember(copy.last_memory, seen),
            (),
            passed,
            weighed,
            upper,
            checked=value.loss,
        )
        if not scene.moves_outer:
            return stepped
        upper_norm = norm(upper_inner)
        diagnostics = Diagnostics(
            upper_gradient_norm=upper_norm,
            hypergradient_norm=norm(gradient),
            stationarity=stationarity(passed.gradient, upper_norm),
            multiplier=factors.gap / factors.upper,
        )
        return stepped._replace(gradient=gradient, diagnostics=diagnostics)

    return solver_of(advance, problem=problem, inner=inner, outer=outer, outer_start=outer_start)


def _scaled(tree: PyTree, factor: Array) -> PyTree:
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype), tree)


def _positive(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
