"""Hypergradients through training itself: the derivative of K optimizer steps, not of their limit."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.hypergradient import Diagnostics, Estimate, Hypergradient, Levels, Point
from bilevel.core.lower_steps import LowerStep
from bilevel.core.optimizer_step import has_derivative
from bilevel.core.problem import Batch
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, all_finite, norm, vdot
from bilevel.core.unroll.mixed import pull_back_steps
from bilevel.core.unroll.training import training

Mode = Literal["mixed", "reverse", "forward"]

_MOST_FORWARD = 1024


def unroll(mode: Mode = "mixed", last_steps: int | None = None, checkpoint: bool = False) -> Hypergradient:
    """The derivative of the upper loss through the lower steps of a solver step, for any optax chain.

        d/d outer of upper(outer, inner_K),   inner_{k+1} = step(grad_inner lower(outer, inner_k), inner_k)

    Exact for the K steps from where they began; the iterate there is a constant. With one step it equals
    `implicit(optimizer_aware())`. All modes give the same numbers:

        mixed     reverse through the optimizer, one jvp of each inner gradient. Keeps iterates and inner gradients
                  of the K steps; costs K - 1 Hessian products and one jvp beyond the steps themselves. The default
        reverse   plain reverse mode through everything; keeps the tapes of K gradients, or with `checkpoint` the
                  iterates alone, at one more gradient a step
        forward   a tangent of the iterate for each outer variable, carried along; memory does not grow with K. For a
                  handful of outer variables over many steps

    Args:
        mode: how to differentiate.
        last_steps: truncated unrolling: differentiates through so many steps, counted from the last, and takes the
            iterate before them as a constant. None for all.
        checkpoint: in reverse mode, whether each step is computed again in the backward pass.

    Raises:
        ValueError: when the optimizer has no derivative (sign-based updates such as lion), for forward mode over more
            than a thousand outer variables, or for options that make no sense.

    References:
        Maclaurin et al., Gradient-based Hyperparameter Optimization through Reversible Learning, ICML 2015.
        Franceschi et al., Forward and Reverse Gradient-Based Hyperparameter Optimization, ICML 2017.
        Shaban et al., Truncated Back-propagation for Bilevel Optimization, AISTATS 2019.
        Kemaev et al., Scalable Meta-Learning via Mixed-Mode Differentiation (MixFlow-MG), ICML 2025.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"unroll: unknown mode {mode!r}: choose one of {', '.join(get_args(Mode))}")
    check_ranges(
        {"last_steps": last_steps}, ("last_steps", last_steps is None or last_steps >= 1, "at least 1")
    )
    if checkpoint and mode != "reverse":
        raise ValueError(f"unroll: checkpoint is an option of mode 'reverse'; mode {mode!r} tapes no step")

    def init(levels: Levels, inner: PyTree) -> tuple[()]:
        if not has_derivative(levels.optimizer, inner):
            raise ValueError(
                "unroll: this inner optimizer's update does not depend smoothly on the gradient (sign-based, like "
                "lion): take an optimizer with a derivative such as adamw or sgd"
            )
        return ()

    def estimate(levels: Levels, point: Point, state: tuple[()]) -> Estimate:
        upper, (upper_outer, upper_inner) = mean_value_and_gradient(
            levels.upper, (point.outer, point.end.inner), point.upper_batches
        )
        if mode == "mixed":
            through = _mixed(levels, point, upper_inner)
        elif mode == "reverse":
            through = _reverse(levels, point, upper_inner, checkpoint)
        else:
            through = _forward(levels, point, upper_inner)
        # The outer penalty is that of the last batch, as in every other estimator.
        gradient = point.weighed.with_penalty(optax.tree.add(upper_outer, through))
        diagnostics = Diagnostics(
            upper_gradient_norm=norm(upper_inner),
            hypergradient_norm=norm(gradient),
            finite=all_finite((upper, gradient)),
        )
        return Estimate(gradient, upper, state, diagnostics)

    return Hypergradient(init, estimate, looks_back=last_steps, keeps_steps=mode == "mixed")


def _mixed(levels: Levels, point: Point, cotangent: PyTree) -> PyTree:
    last = LowerStep(point.last, point.memory, point.gradient, point.weighed.weights, point.weighed.losses)
    earlier, batches = point.look_back.earlier, _looked_back_batches(point)
    return pull_back_steps(levels, point.outer, earlier, last, batches, cotangent)[0]


def _reverse(levels: Levels, point: Point, cotangent: PyTree, checkpoint: bool) -> PyTree:
    train = training(levels, point.look_back.memory, _looked_back_batches(point), point.step, checkpoint)
    _, pull_back = jax.vjp(lambda outer: train(outer, point.look_back.start), point.outer)
    return pull_back(cotangent)[0]


def _forward(levels: Levels, point: Point, cotangent: PyTree) -> PyTree:
    flat, unravel = ravel_pytree(point.outer)
    if flat.size > _MOST_FORWARD:
        raise ValueError(
            f"unroll: forward mode carries a copy of the iterate for each of {flat.size} outer variables: take "
            "mode 'mixed'"
        )
    train = training(levels, point.look_back.memory, _looked_back_batches(point), point.step)

    def slope(direction: Float[Array, " outer"]) -> Float[Array, ""]:
        _, moved = jax.jvp(
            lambda outer: train(outer, point.look_back.start), (point.outer,), (unravel(direction),)
        )
        return vdot(cotangent, moved)

    # Under vmap the training itself runs once, beside all tangents.
    return unravel(jax.vmap(slope)(jnp.eye(flat.size, dtype=flat.dtype)).astype(flat.dtype))


def _looked_back_batches(point: Point) -> Batch:
    return jax.tree.map(lambda x: x[-point.look_back.steps :], point.lower_batches)
