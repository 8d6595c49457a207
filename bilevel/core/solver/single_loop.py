"""Single-loop solvers: the linear system of the implicit gradient is itself solved along the way, a step at a time."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.adjoint.neumann import neumann
from bilevel.core.curvature import HESSIAN, Curvature, relative
from bilevel.core.hypergradient import Diagnostics, implicit, stationarity
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import descend, take_lower_steps
from bilevel.core.problem import Problem, RowProblem, Seen
from bilevel.core.ranges import check_ranges
from bilevel.core.solver.alternating import alternating
from bilevel.core.solver.shell import Advance, Scene, solver_of
from bilevel.core.solver.solver import Solver
from bilevel.core.tree import PyTree, add_scaled, norm, vdot, widened


class LinearSystem(NamedTuple):
    """SOBA's third sequence.

    Attributes:
        q: its present solution, in at least float32.
        largest: the largest |A q| / |q| that was met, a lower bound of the largest eigenvalue.
    """

    q: PyTree
    largest: Array


def soba(
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    *,
    step_size: float | None = None,
    damping: float = 0.0,
    outer_start: PyTree | None = None,
) -> Solver:
    """Three sequences that move together: inner variables, the direction q, outer variables (SOBA).

        inner <- inner - step of grad_inner lower
        q     <- q - step_size [(H + damping I) q - grad_inner upper]
        outer <- outer - step of grad_outer upper - d/d outer < grad_inner lower, q >

    all at the same inner variables, on the same batch. One jvp of the lower gradient along q holds the inner
    gradient, the Hessian product and the cross product, so a step costs that one pass (2 to 3 gradients) and an upper
    gradient. q tends to (H + damping I)^-1 grad_inner upper while the others move slowly. Of several lower batches
    the last takes the joint step, the others lower steps before it.

    Steps at frozen outer variables move q too: training before the outer variables begin to move lets it settle.

    Args:
        problem: the bilevel problem.
        inner: optimizer of the inner variables.
        outer: optimizer of the outer variables; receives `batch=` (the last lower batch) if it asks.
        step_size: of q, below 2 / (largest eigenvalue of the lower level). None for 1 / (largest |A q| / |q| that was
            met): where that is too long, q grows along the largest eigenvector until it is met.
        damping: added to every eigenvalue.
        outer_start: initial outer variables, for a general problem only.

    Raises:
        ValueError: for a step size that is not positive, or negative damping.

    References:
        Dagréou, Ablin, Vaiter & Moreau, A Framework for Bilevel Optimization that Enables Stochastic and Global
        Variance Reduction Algorithms (SOBA), NeurIPS 2022.
    """
    check_ranges(
        {"step_size": step_size, "damping": damping},
        ("step_size", step_size is None or step_size > 0, "positive"),
        ("damping", damping >= 0, "0 or more"),
    )
    level = lower_level(problem)

    def begin(params: PyTree) -> LinearSystem:
        return LinearSystem(optax.tree.zeros_like(widened(params)), jnp.zeros((), jnp.float32))

    def advance(scene: Scene) -> Advance:
        state, outer_variables, batches = scene.state, scene.outer, scene.last_batches
        q, begun, memory = state.extra.q, state.inner, state.memory
        if scene.earlier_batches is not None:
            taken = take_lower_steps(
                level,
                inner,
                outer=outer_variables,
                memory=memory,
                start=begun,
                lower_batches=scene.earlier_batches,
                step=state.step,
            )
            begun, memory = taken.end, taken.memory

        weighed = level.weigh(outer_variables, memory, begun.inner, batches)
        linearised = level.linearised_gradient(outer_variables, weighed.weights, begun.inner, batches, q)
        passed = linearised.passed
        upper, (upper_outer, upper_inner) = mean_value_and_gradient(
            problem.upper, (outer_variables, begun.inner), scene.upper_batches
        )
        image = add_scaled(widened(linearised.hessian_product), damping, q)
        residual = add_scaled(image, -1.0, upper_inner)
        squared = vdot(q, q)
        stretch = relative(norm(image), jnp.sqrt(squared))
        largest = jnp.maximum(state.extra.largest, stretch.astype(jnp.float32))
        if step_size is None:  # at q = 0 nothing is known of the matrix yet, and any start is as good
            rate = jnp.where(largest > 0, 1.0 / jnp.where(largest > 0, largest, 1.0), 1.0)
        else:
            rate = jnp.asarray(step_size)
        direction = LinearSystem(add_scaled(q, -rate, residual), largest)

        seen = Seen(batches, passed.row_losses, None, state.step)
        stepped = Advance(
            descend(inner, begun, passed.gradient),
            level.remember(memory, seen),
            direction,
            passed,
            weighed,
            upper,
            checked=direction,
        )
        if not scene.moves_outer:
            return stepped
        cross = weighed.outer_gradient(optax.tree.scale(-1.0, linearised.cross_signal))
        gradient = optax.tree.add(upper_outer, cross)
        above = norm(upper_inner)
        diagnostics = Diagnostics(
            upper_gradient_norm=above,
            direction_norm=jnp.sqrt(squared),
            hypergradient_norm=norm(gradient),
            stationarity=stationarity(passed.gradient, above),
            residual=relative(norm(residual), above),
            curvature=jnp.where(squared > 0, vdot(q, image) / jnp.where(squared > 0, squared, 1.0), jnp.inf),
            damping=jnp.asarray(damping, jnp.float32),
        )
        return stepped._replace(gradient=gradient, diagnostics=diagnostics)

    return solver_of(advance, problem=problem, inner=inner, outer=outer, outer_start=outer_start, begin=begin)


def amigo(
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    *,
    linear_steps: int = 10,
    step_size: float | None = None,
    curvature: Curvature = HESSIAN,
    outer_start: PyTree | None = None,
) -> Solver:
    """K lower steps, then a few gradient steps on the linear system from the last step's q, then an outer step (AmIGO).

        q <- q - step_size [(H + damping I) q - grad_inner upper],   linear_steps times, at the new inner variables

    Warm-started in both, lower level and linear system need only a fixed number of steps for their errors to fall as
    the outer variables settle: it is `alternating` with a warm-started Neumann series.

    Args:
        problem: the bilevel problem.
        inner: optimizer of the inner variables.
        outer: optimizer of the outer variables.
        linear_steps: steps on the linear system.
        step_size: of these steps; None for 1 / (estimate of the largest eigenvalue), by power iteration.
        curvature: which matrix.
        outer_start: initial outer variables, for a general problem only.

    References:
        Arbel & Mairal, Amortized Implicit Differentiation for Stochastic Bilevel Optimization (AmIGO), ICLR 2022.
    """
    rule = neumann(linear_steps, curvature, step_size, warm_start=True)
    return alternating(problem, inner, outer, implicit(rule), outer_start=outer_start)
