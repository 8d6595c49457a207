"""Penalty (value-function) solvers: first-order, with the lower level's optimum as a second copy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.hypergradient import Diagnostics
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import Iterate, descend
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
from bilevel.core.tree import PyTree, all_finite, norm


def penalty(
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    upper_share: Callable[[Array], Array],
    copies: Literal[1, 2] = 2,
    scale_outer: bool = True,
    outer_start: PyTree | None = None,
) -> Solver:
    """Descends share * upper + (1 - share) * [lower - value], value = min over inner of lower.

    With share = 1 / (1 + gamma) this is upper + gamma * (lower - value), rescaled. Each lower batch takes

        second <- second - step of grad lower(outer, second)                            the value's copy
        inner  <- inner  - step of share grad upper(inner) + (1 - share) grad lower(outer, inner)
        outer  <- outer  - step of (1 - share) [d_outer lower(inner) - d_outer lower(second)] + share d_outer upper

    both copies from the same start, on the same batches, by the same optimizer: any mismatch between them would be
    multiplied by gamma. On rows the outer signal is the *excess loss* l_i(inner) - l_i(second), read off the same
    passes that the gradients come from, so an outer step costs nothing beyond them.

    With copies=2 and 1 / share - 1 the multiplier, this is F2SA where the multiplier grows (`growing_multiplier`), and
    SEAL where the share falls by the epoch. V-PBGD and BOME find the value anew in each step: `value_gap`.

    `copies=1` drops the second copy (the published memory-efficient variant): the signal is the raw row loss, which
    cannot tell rows that are hard but useful from useless ones. Under LoRA the second copy is one more adapter.

    Args:
        problem: the bilevel problem.
        inner: optimizer of both copies.
        outer: optimizer of the outer variables; receives `visited=` (row ids of the last batch) if it asks.
        upper_share: schedule, solver step -> share in [0, 1]. The published lambda.
        copies: 2 for the value function, 1 without it.
        scale_outer: whether the outer signal carries its factor (1 - share); the authors' code leaves it out, so
            that the outer variables also move while the share is 1.
        outer_start: initial outer variables, for a general problem only.

    References:
        Shen & Chen, On Penalty-based Bilevel Gradient Descent Method, ICML 2023.
        Kwon et al., A Fully First-Order Method for Stochastic Bilevel Optimization (F2SA), ICML 2023.
        Shen et al., SEAL: Safety-enhanced Aligned LLM Fine-tuning via Bilevel Data Selection, ICLR 2025.
    """
    level = lower_level(problem)
    start_outer = weighting_of(problem, outer_start)

    def init(key: Array, params: PyTree) -> SolverState:
        outer_variables, memory = start_outer(jax.random.fold_in(key, 0))
        second = Iterate(jax.tree.map(jnp.copy, params), inner.init(params)) if copies == 2 else ()
        return initial_state(
            jax.random.fold_in(key, 1), params, outer_variables, memory, second, inner, outer
        )

    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: Collection[Level] = BOTH
    ) -> tuple[SolverState, StepReport]:
        share = jnp.asarray(upper_share(state.step), jnp.float32)
        outer_variables = state.outer.inner

        def lower_step(state: SolverState, batches: Batch) -> tuple[SolverState, tuple]:
            weighed, passed, _ = level.visit(outer_variables, state.memory, state.inner.inner, batches)
            upper, (upper_outer, upper_gradient) = mean_value_and_gradient(
                problem.upper, (outer_variables, state.inner.inner), upper_batches
            )
            signal, second = passed.signal, state.extra
            if copies == 2:
                value = level.gradient(outer_variables, weighed.weights, second.inner, batches)
                signal = optax.tree.sub(signal, value.signal)
                second = descend(inner, second, value.gradient)
            mixed = jax.tree.map(
                lambda above, below: (share * above + (1 - share) * below).astype(below.dtype),
                upper_gradient,
                passed.gradient,
            )
            memory = level.remember(state.memory, batches, passed.row_losses)
            after = state.replace(inner=descend(inner, state.inner, mixed), extra=second, memory=memory)
            return after, (passed, upper, upper_outer, norm(upper_gradient), signal, weighed)

        after = state
        if jax.tree.leaves(lower_batches)[0].shape[0] > 1:
            earlier = jax.tree.map(lambda x: x[:-1], lower_batches)
            after, _ = jax.lax.scan(
                lambda state, batches: (lower_step(state, batches)[0], None), state, earlier
            )
        batches = jax.tree.map(lambda x: x[-1], lower_batches)
        after, (passed, upper, upper_outer, upper_norm, signal, weighed) = lower_step(after, batches)

        finite = all_finite((passed.loss, upper, after.inner.inner, after.extra))
        diagnostics = None
        if "outer" in updates:
            factor = 1 - share if scale_outer else jnp.ones(())
            gradient = weighed.outer_gradient(optax.tree.scale(factor, signal))
            gradient = optax.tree.add_scale(gradient, share, upper_outer)
            after = after.replace(outer=descend(outer, state.outer, gradient, **visited_rows(lower_batches)))
            finite &= all_finite(after.outer.inner)
            diagnostics = Diagnostics(
                upper_gradient_norm=upper_norm, hypergradient_norm=norm(gradient), finite=finite
            )

        new = after.replace(
            key=jax.random.split(state.key)[0],
            extra=after.extra if "inner" in updates else state.extra,
        )
        return conclude(state, new, updates, finite, passed, weighed, batches, upper, diagnostics)

    return Solver(init, step)


def growing_multiplier(first: float, growth: float) -> Callable[[Array], Array]:
    """Returns the upper level's share 1 / (1 + gamma) under a multiplier gamma = first + growth * step (F2SA).

    Args:
        first: multiplier of the first step, 0 or more.
        growth: what it gains a step, 0 or more.
    """
    if first < 0 or growth < 0:
        raise ValueError(f"growing_multiplier: first {first} and growth {growth} must be 0 or more")
    return lambda step: 1.0 / (1.0 + first + growth * step)
