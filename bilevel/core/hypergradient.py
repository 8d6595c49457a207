"""Hypergradients from one direction: grad_outer upper - d/d outer < grad_inner lower, q >.

Every implicit and every one-step estimator is a rule for the direction q in parameter space (`bilevel.core.adjoint`)
followed by this one directional derivative. For row weights it is one forward-mode pass over the row losses:

    scores_i = < grad l_i, q >        hypergradient = grad_outer upper - pull_back_w(scores) / rows
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.losses import Mean
from bilevel.core.lower_level import LowerLevel, Weighed
from bilevel.core.lower_steps import Iterate as Iterate
from bilevel.core.lower_steps import LookBack
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree, all_finite, norm


class Levels(NamedTuple):
    """What an estimator may ask of the problem: the lower level, the upper function, the inner optimizer."""

    lower: LowerLevel
    upper: Callable[[PyTree, PyTree, Batch], Mean]
    optimizer: optax.GradientTransformation


class Point(NamedTuple):
    """Where a hypergradient is evaluated: around the lower steps of one solver step.

    Attributes:
        outer: the outer variables.
        memory: the weighting's memory before the last lower step.
        start: before the first lower step.
        last: before the last lower step.
        end: after the last lower step.
        gradient: the inner gradient of the lower level at `last`.
        weighed: the last lower batch under the outer variables.
        lower_batches: [lower steps, micro-batches, ...].
        upper_batches: [micro-batches, ...].
        key: for estimators that draw.
        step: of the solver.
        look_back: the steps that the estimator said it would look back on.
        cross_signal: from a direction to the cross derivative's signal at `last`, by what the last lower step's forward
            pass left; None where nothing was kept.
    """

    outer: PyTree
    memory: PyTree
    start: Iterate
    last: Iterate
    end: Iterate
    gradient: PyTree
    weighed: Weighed
    lower_batches: Batch
    upper_batches: Batch
    key: Array
    step: Array | int
    look_back: LookBack
    cross_signal: Callable[[PyTree], PyTree] | None = None


class Diagnostics(struct.PyTreeNode):
    """What an estimator saw; None where it has no such thing.

    Attributes:
        upper_gradient_norm: of the upper level with respect to the inner variables.
        direction_norm: of q.
        hypergradient_norm: of the outer gradient.
        parts: the same of each of its parts, where the outer variables are a dict.
        stationarity: norm of the inner gradient of the lower level before the last lower step, relative to
            `upper_gradient_norm`: how far the lower level is from an optimum, which implicit rules take for granted.
        residual: relative residual of a linear system.
        curvature: smallest curvature p.Ap / p.p that was met in the system's matrix A = H + damping I.
        damping: what was added to every eigenvalue.
        multiplier: of the lower level's excess, where a solver chooses it.
        finite: whether the estimate is.
    """

    upper_gradient_norm: Any = None
    direction_norm: Any = None
    hypergradient_norm: Any = None
    parts: dict[str, Any] | None = None
    stationarity: Any = None
    residual: Any = None
    curvature: Any = None
    damping: Any = None
    multiplier: Any = None
    finite: Any = None


class Estimate(NamedTuple):
    """An estimator's answer: the outer gradient, the upper level's mean, new state, diagnostics."""

    gradient: PyTree
    upper: Mean
    state: PyTree
    diagnostics: Diagnostics


class Hypergradient(NamedTuple):
    """An estimator.

    Attributes:
        init: `(levels, inner) -> state`; refuses optimizers that the estimator cannot serve.
        estimate: `(levels, point, state) -> Estimate`.
        looks_back: how many lower steps it differentiates through, counted from the last; None for all.
        keeps_steps: whether it wants a record of each of them.
        keeps_pass: whether it wants the last one's forward pass kept, see `Point.cross_signal`.
    """

    init: Callable[[Levels, PyTree], PyTree]
    estimate: Callable[[Levels, Point, PyTree], Estimate]
    looks_back: int | None = 1
    keeps_steps: bool = False
    keeps_pass: bool = False


class Direction(NamedTuple):
    """A rule's answer: q, state, diagnostics."""

    q: PyTree
    state: PyTree = ()
    diagnostics: Diagnostics = Diagnostics()


class Adjoint(NamedTuple):
    """A rule for the direction q.

    Attributes:
        init: `(levels, inner) -> state`.
        solve: `(levels, point, upper_gradient, state) -> Direction`.
        at: where the cross derivative is taken: before the last lower step, as derivatives of that step are, or after
            it, as those of an optimum are.
    """

    init: Callable[[Levels, PyTree], PyTree]
    solve: Callable[[Levels, Point, PyTree, PyTree], Direction]
    at: Literal["last", "end"] = "end"


def implicit(adjoint: Adjoint, reuse: bool = True) -> Hypergradient:
    """The estimator that takes one cross derivative along an adjoint rule's direction.

    The upper gradient is taken after the lower steps, where the upper level is to be small; the rule says where the
    cross derivative belongs.

    Args:
        adjoint: rule for q, from `bilevel.core.adjoint`.
        reuse: whether a rule at `last` shares the lower step's forward pass, a third of the cross derivative. What the
            pass left of the layers is then held while the upper gradient is computed. Lower batches of several
            micro-batches, and problems with other `first_order` losses, are run forward again all the same.
    """

    def estimate(levels: Levels, point: Point, state: PyTree) -> Estimate:
        upper, (upper_outer, upper_inner) = mean_value_and_gradient(
            levels.upper, (point.outer, point.end.inner), point.upper_batches
        )
        q, state, diagnostics = adjoint.solve(levels, point, upper_inner, state)
        if adjoint.at == "last" and point.cross_signal is not None:
            signal = point.cross_signal(q)
        else:
            at = getattr(point, adjoint.at).inner
            last_batch = {name: value[-1] for name, value in point.lower_batches.items()}
            signal = levels.lower.cross_signal(point.outer, point.weighed.weights, at, last_batch, q)
        cross = point.weighed.outer_gradient(optax.tree.scale(-1.0, signal))
        gradient = optax.tree.add(upper_outer, cross)
        upper_norm, direction_norm = norm(upper_inner), norm(q)
        return Estimate(
            gradient,
            upper,
            state,
            diagnostics.replace(
                upper_gradient_norm=upper_norm,
                direction_norm=direction_norm,
                hypergradient_norm=norm(gradient),
                stationarity=stationarity(point.gradient, upper_norm),
                # The norm tells of every entry of q; a solver that met NaN may have stopped before it reached q.
                finite=all_finite((upper, direction_norm, gradient, diagnostics.residual)),
            ),
        )

    return Hypergradient(adjoint.init, estimate, keeps_pass=reuse and adjoint.at == "last")


def stationarity(lower_gradient: PyTree, upper_gradient_norm: Array) -> Float[Array, ""]:
    """`Diagnostics.stationarity`, for estimators that fill it in themselves."""
    return norm(lower_gradient) / jnp.maximum(upper_gradient_norm, jnp.finfo(jnp.float32).tiny)
