"""Penalty (value-function) solvers: first-order, with the lower level's optimum as a second copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.hypergradient import Diagnostics
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import Iterate, descend
from bilevel.core.problem import Batch, Problem, RowProblem, Seen
from bilevel.core.ranges import check_ranges
from bilevel.core.solver.shell import Advance, Scene, solver_of
from bilevel.core.solver.solver import Solver
from bilevel.core.tree import PyTree, norm


def penalty(
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    upper_share: Callable[[Array], Array],
    *,
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
        outer: optimizer of the outer variables; receives `batch=` (the last lower batch) if it asks.
        upper_share: schedule, solver step -> share in [0, 1]. The published lambda.
        copies: 2 for the value function, 1 without it.
        scale_outer: whether the outer signal carries its factor (1 - share), and the outer penalty the upper level's,
            share; the authors' code leaves both out, so that the outer variables also move while the share is 1.
        outer_start: initial outer variables, for a general problem only.

    References:
        Shen & Chen, On Penalty-based Bilevel Gradient Descent Method, ICML 2023.
        Kwon et al., A Fully First-Order Method for Stochastic Bilevel Optimization (F2SA), ICML 2023.
        Shen et al., SEAL: Safety-enhanced Aligned LLM Fine-tuning via Bilevel Data Selection, ICLR 2025.
    """
    level = lower_level(problem)

    def begin(params: PyTree) -> PyTree:
        return Iterate(jax.tree.map(jnp.copy, params), inner.init(params)) if copies == 2 else ()

    def advance(scene: Scene) -> Advance:
        state, outer_variables = scene.state, scene.outer
        share = jnp.asarray(upper_share(state.step), jnp.float32)

        def lower_step(
            first: Iterate, second: Any, memory: PyTree, batches: Batch
        ) -> tuple[tuple[Iterate, Any, PyTree], tuple]:
            weighed, passed, _ = level.visit(outer_variables, memory, first.inner, batches)
            upper, (upper_outer, upper_inner) = mean_value_and_gradient(
                problem.upper, (outer_variables, first.inner), scene.upper_batches
            )
            signal, value_losses = passed.signal, None
            if copies == 2:
                value = level.gradient(outer_variables, weighed.weights, second.inner, batches)
                signal, value_losses = optax.tree.sub(signal, value.signal), value.row_losses
                second = descend(inner, second, value.gradient)
            mixed = jax.tree.map(
                lambda above, below: (share * above + (1 - share) * below).astype(below.dtype),
                upper_inner,
                passed.gradient,
            )
            seen = Seen(batches, passed.row_losses, value_losses, state.step)
            after = (descend(inner, first, mixed), second, level.remember(memory, seen))
            return after, (passed, upper, upper_outer, norm(upper_inner), signal, weighed)

        at = (state.inner, state.extra, state.memory)
        if scene.earlier_batches is not None:
            at, _ = jax.lax.scan(
                lambda at, batches: (lower_step(*at, batches)[0], None), at, scene.earlier_batches
            )
        (first, second, memory), seen = lower_step(*at, scene.last_batches)
        passed, upper, upper_outer, upper_norm, signal, weighed = seen

        extra = second if scene.moves_inner else state.extra
        stepped = Advance(first, memory, extra, passed, weighed, upper, checked=second)
        if not scene.moves_outer:
            return stepped
        below, above = (1 - share, share) if scale_outer else (jnp.ones(()), jnp.ones(()))
        gradient = weighed.with_penalty(weighed.pull_back(optax.tree.scale(below, signal)), above)
        gradient = optax.tree.add_scale(gradient, share, upper_outer)
        diagnostics = Diagnostics(upper_gradient_norm=upper_norm, hypergradient_norm=norm(gradient))
        return stepped._replace(gradient=gradient, diagnostics=diagnostics)

    return solver_of(advance, problem=problem, inner=inner, outer=outer, outer_start=outer_start, begin=begin)


def growing_multiplier(first: float, growth: float) -> Callable[[Array], Array]:
    """The upper level's share 1 / (1 + gamma) under a multiplier gamma = first + growth * step (F2SA).

    Args:
        first: multiplier of the first step, 0 or more.
        growth: what it gains a step, 0 or more.
    """
    check_ranges(
        {"first": first, "growth": growth},
        ("first", first >= 0, "0 or more"),
        ("growth", growth >= 0, "0 or more"),
    )
    return lambda step: 1.0 / (1.0 + first + growth * step)
