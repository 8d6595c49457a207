"""Unrolling in the memory of a few steps: the lower steps of a solver step are run again, segment by segment."""

from __future__ import annotations

from math import isqrt

import jax
import jax.numpy as jnp

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.hypergradient import Diagnostics, Estimate, Hypergradient, Levels, Point
from bilevel.core.optimizer_step import has_derivative
from bilevel.core.problem import Batch
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, all_finite, norm
from bilevel.core.unroll.mixed import without_moments
from bilevel.core.unroll.segments import Pulled, Reached, advance, pull_back, record


def whole_run(segment: int | None = None) -> Hypergradient:
    """The derivative through all lower steps of a solver step, as `unroll`, without records of all of them.

    The steps are taken a second time, of which the starts of segments are kept, and a segment at a time is run again
    with its records and pulled back: about twice the square root of the steps in memory, instead of all of them, for
    two more gradients a step. Runs that no single program should hold are what `differentiate_run` is for.

    Args:
        segment: steps of a segment; None for the square root of the lower steps.

    Raises:
        ValueError: for a segment of no steps; when the optimizer has no derivative.

    References:
        Engstrom et al., Optimizing ML Training with Metagradient Descent, 2025 (REPLAY).
        Ilyas and Engstrom, MAGIC: Near-Optimal Data Attribution for Deep Learning, 2025.
    """
    check_ranges({"segment": segment}, ("segment", segment is None or segment >= 1, "at least 1"))

    def init(levels: Levels, inner: PyTree) -> tuple[()]:
        if not has_derivative(levels.optimizer, inner):
            raise ValueError(
                "whole_run: this inner optimizer's update does not depend smoothly on the gradient (sign-based, like "
                "lion): take an optimizer with a derivative such as adamw or sgd"
            )
        return ()

    def estimate(levels: Levels, point: Point, state: tuple[()]) -> Estimate:
        upper, (upper_outer, upper_inner) = mean_value_and_gradient(
            levels.upper, (point.outer, point.end.inner), point.upper_batches
        )
        pulled = _pulled(levels, point, Pulled(upper_outer, without_moments(upper_inner, point.end)), segment)
        # The outer penalty is that of the last batch, as in every other estimator.
        gradient = point.weighed.with_penalty(pulled.gradient)
        diagnostics = Diagnostics(
            upper_gradient_norm=norm(upper_inner),
            hypergradient_norm=norm(gradient),
            finite=all_finite((upper, gradient)),
        )
        return Estimate(gradient, upper, state, diagnostics)

    return Hypergradient(init, estimate, looks_back=None)


def _pulled(levels: Levels, point: Point, above: Pulled, segment: int | None) -> Pulled:
    steps = point.look_back.steps
    length = min(steps, isqrt(steps - 1) + 1 if segment is None else segment)
    whole = steps // length * length
    batches = dict(point.lower_batches)
    segments = jax.tree.map(lambda x: x[:whole].reshape(whole // length, length, *x.shape[1:]), batches)

    def step_on(at: Reached, batches: Batch) -> tuple[Reached, Reached]:
        return advance(levels.lower, levels.optimizer, point.outer, at, batches, point.step), at

    def step_back(pulled: Pulled, given: tuple[Reached, Batch]) -> tuple[Pulled, None]:
        start, batches = given
        taken = record(levels.lower, levels.optimizer, point.outer, start, batches, point.step).steps
        return pull_back(levels, point.outer, taken, batches, pulled)[0], None

    begun = Reached(point.look_back.start, point.look_back.memory)
    end, starts = jax.lax.scan(step_on, jax.tree.map(jnp.asarray, begun), segments)
    if whole < steps:
        above, _ = step_back(above, (end, jax.tree.map(lambda x: x[whole:], batches)))
    return jax.lax.scan(step_back, above, (starts, segments), reverse=True)[0]
