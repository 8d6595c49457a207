"""Zeroth-order hypergradients, for a handful of outer variables and for lower levels without second derivatives.

The lower steps are run again at moved outer variables; nothing is differentiated through them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel.core.accumulate import mean_value_and_gradient, over_micro_batches
from bilevel.core.hypergradient import Diagnostics, Estimate, Hypergradient, Levels, Point
from bilevel.core.losses import Mean
from bilevel.core.lower_steps import take_lower_steps
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, all_finite, norm, vdot, widened


def evolution_strategies(samples: int = 8, radius: float = 1e-2, at_once: int = 1) -> Hypergradient:
    """Antithetic evolution strategies: central differences of the upper loss after the lower steps.

        1/n sum_j [upper(outer + radius e_j) - upper(outer - radius e_j)] / (2 radius) e_j

    with upper(.) the upper loss after the K lower steps of this solver step, from the same iterate, on the same
    batches, with the same key: random numbers are common to all runs, and what they add cancels. Directions are
    drawn in orthogonal blocks, so that as many samples as outer variables (or a multiple) give the derivative up to
    radius^2; with other numbers the estimate is unbiased up to that, and its variance falls as samples rise. The
    upper loss may be anything that can be evaluated; what a weighting reads of row losses moves along, and is not
    held as data. Costs 2 n trainings of K steps.

    Args:
        samples: directions n.
        radius: length of the difference in each outer variable's own unit.
        at_once: trainings that are run side by side, each with its own copy of the inner variables.

    Raises:
        ValueError: for options that are not positive.

    References:
        Salimans et al., Evolution Strategies as a Scalable Alternative to Reinforcement Learning, 2017.
        Choromanski et al., Structured Evolution with Compact Architectures, ICML 2018 (orthogonal directions).
    """
    _check(samples, radius, at_once)

    def estimate(levels: Levels, point: Point, state: tuple[()]) -> Estimate:
        def upper_at(outer: PyTree, inner: PyTree) -> Mean:
            return over_micro_batches(
                lambda batch: (_as_arrays(levels.upper(outer, inner, batch)), ()), point.upper_batches
            )[0]

        def value(outer: PyTree) -> Float[Array, ""]:
            return upper_at(outer, _trained(levels, point, outer)).value

        def slope(move: Callable[[float], PyTree]) -> Float[Array, ""]:
            return (value(move(radius)) - value(move(-radius))) / (2 * radius)

        upper = upper_at(point.outer, point.end.inner)
        gradient = point.weighed.with_penalty(_averaged(slope, point, samples, at_once))
        finite = all_finite((upper, gradient))
        diagnostics = Diagnostics(hypergradient_norm=norm(gradient), finite=finite)
        return Estimate(gradient, upper, state, diagnostics)

    return Hypergradient(lambda levels, inner: (), estimate, looks_back=None)


def pzobo(samples: int = 8, radius: float = 1e-2, at_once: int = 1) -> Hypergradient:
    """Partial zeroth order (PZOBO): differences of the trained inner variables, against the upper level's gradient.

        grad_outer upper + 1/n sum_j < [inner(outer + radius e_j) - inner(outer)] / radius, grad_inner upper > e_j

    Only the response of the inner variables is estimated by differences; the upper level is differentiated. Costs
    n trainings of K steps and one upper gradient: half of `evolution_strategies`, at an error that falls with the
    radius and not its square. Directions, keys and batches as there.

    Args:
        samples: directions n.
        radius: length of the difference in each outer variable's own unit.
        at_once: trainings that are run side by side, each with its own copy of the inner variables.

    Raises:
        ValueError: for options that are not positive.

    References:
        Sow, Ji & Liang, On the Convergence Theory for Hessian-Free Bilevel Algorithms (PZOBO), NeurIPS 2022.
    """
    _check(samples, radius, at_once)

    def estimate(levels: Levels, point: Point, state: tuple[()]) -> Estimate:
        upper, (upper_outer, upper_inner) = mean_value_and_gradient(
            levels.upper, (point.outer, point.end.inner), point.upper_batches
        )

        def slope(move: Callable[[float], PyTree]) -> Float[Array, ""]:
            # The unmoved training is the one that the solver took; compiled alike, it differs in no bit that counts.
            moved = _trained(levels, point, move(radius))
            return vdot(optax.tree.sub(widened(moved), widened(point.end.inner)), upper_inner) / radius

        response = _averaged(slope, point, samples, at_once)
        gradient = point.weighed.with_penalty(optax.tree.add(upper_outer, response))
        diagnostics = Diagnostics(
            upper_gradient_norm=norm(upper_inner),
            hypergradient_norm=norm(gradient),
            finite=all_finite((upper, gradient)),
        )
        return Estimate(gradient, upper, state, diagnostics)

    return Hypergradient(lambda levels, inner: (), estimate, looks_back=None)


def _check(samples: int, radius: float, at_once: int) -> None:
    given = {"samples": samples, "radius": radius, "at_once": at_once}
    check_ranges(given, *((name, value > 0, "positive") for name, value in given.items()))


def _trained(levels: Levels, point: Point, outer: PyTree) -> PyTree:
    back = point.look_back
    return take_lower_steps(
        levels.lower,
        levels.optimizer,
        outer=outer,
        memory=back.memory,
        start=back.start,
        lower_batches=point.lower_batches,
        step=point.step,
    ).end.inner


def _averaged(
    slope: Callable[[Callable[[float], PyTree]], Float[Array, ""]], point: Point, samples: int, at_once: int
) -> PyTree:
    """The mean over directions of slope times direction, as a tree of outer variables."""
    flat, unravel = ravel_pytree(point.outer)
    directions = _orthogonal(jax.random.fold_in(point.key, 0), samples, flat.size, flat.dtype)

    def along(direction: Float[Array, " outer"]) -> Float[Array, ""]:
        return slope(lambda length: unravel(flat + length * direction))

    slopes = jax.lax.map(along, directions, batch_size=min(at_once, samples))
    return unravel((slopes @ directions / samples).astype(flat.dtype))


def _orthogonal(key: Array, samples: int, size: int, dtype: jnp.dtype) -> Float[Array, "samples outer"]:
    """Directions of length sqrt(size) in random orthogonal blocks, so that their mean outer product is the identity."""
    blocks, columns = -(-samples // size), min(samples, size)
    bases, _ = jnp.linalg.qr(jax.random.normal(key, (blocks, size, columns), dtype))
    directions = jnp.swapaxes(bases, 1, 2).reshape(blocks * columns, size)[:samples]
    return directions * jnp.sqrt(jnp.asarray(size, dtype))


def _as_arrays(mean: Mean) -> Mean:
    return Mean(jnp.asarray(mean.total), jnp.asarray(mean.count))  # users count in plain integers
