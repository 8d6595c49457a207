"""Mixed mode: reverse through the optimizer steps, forward over reverse through each inner gradient.

Of each lower step, the inner gradient is the one place where second derivatives stand. Reverse mode over it would
tape the gradient's own forward and backward pass, for every step. By symmetry of second derivatives its vjp is one
jvp of the gradient instead, which tapes nothing:

    c      = (d step / d gradient)^T (cotangents of the next iterate)          one vjp of the optax chain
    H c, s = jvp of [ inner -> (grad_inner lower, signal) ] along c            one forward-over-reverse pass
    cotangent of inner += H c            outer gradient += pull_back(s)

Between steps stand only the iterates and the inner gradients that the lower steps left (`LowerStep`), so no gradient
is computed twice.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel.core.hypergradient import Levels
from bilevel.core.lower_steps import Iterate, LowerStep
from bilevel.core.optimizer_step import Smooth, differentiable_step, smooth_part, with_smooth_part
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree


class PulledBackStep(NamedTuple):
    """The vjp of one lower step.

    Attributes:
        gradient: the outer gradient, without the outer penalty's.
        signal: what it was made from, see `bilevel.core.lower_level`: of row weights a number a row.
        below: cotangent of the iterate before the step.
    """

    gradient: PyTree
    signal: PyTree
    below: Smooth


def pull_back_step(
    levels: Levels, outer: PyTree, taken: LowerStep, batch: Batch, above: Smooth, curved: bool = True
) -> PulledBackStep:
    """The vjp of one lower step.

    Args:
        levels: the problem.
        outer: outer variables.
        taken: the step as it was taken.
        batch: its batch, [micro-batches, ...].
        above: cotangent of the iterate after it.
        curved: whether the cotangent of the iterate before it is wanted; without it the step costs one jvp of the row
            losses and no Hessian product, and `below` lacks the gradient's part.
    """

    def step(gradient: PyTree, part: Smooth) -> Smooth:
        begun = with_smooth_part(taken.before, part)
        return smooth_part(differentiable_step(levels.optimizer, gradient, begun))

    _, transposed = jax.vjp(step, taken.gradient, smooth_part(taken.before))
    c, below = transposed(above)
    weighed = levels.lower.weigh(outer, taken.memory, taken.before.inner, batch, taken.losses)
    if curved:
        passed = levels.lower.linearised_gradient(outer, taken.weights, taken.before.inner, batch, c)
        signal = passed.cross_signal
        below = below._replace(inner=optax.tree.add(below.inner, passed.hessian_product))
    else:
        signal = levels.lower.cross_signal(outer, taken.weights, taken.before.inner, batch, c)
    return PulledBackStep(weighed.pull_back(signal), signal, below)


def without_moments(cotangent: PyTree, iterate: Iterate) -> Smooth:
    """A cotangent of inner variables alone as one of the iterate."""
    return Smooth(cotangent, tuple(map(jnp.zeros_like, smooth_part(iterate).moments)))


def pull_back_steps(
    levels: Levels,
    outer: PyTree,
    earlier: LowerStep | None,
    last: LowerStep,
    batches: Batch,
    cotangent: PyTree | Smooth,
    of_start: bool = False,
) -> tuple[PyTree, Smooth | None]:
    """The vjp of taking lower steps.

    Args:
        levels: the problem.
        outer: outer variables.
        earlier: the steps before the last, stacked; None if there are none.
        last: the last step.
        batches: of all these steps, [steps, micro-batches, ...].
        cotangent: of the inner variables after the last step; a `Smooth` where the optimizer's moments have one too,
            since later steps were pulled back before.
        of_start: whether the cotangent of the first iterate is wanted too; without it the first step costs one jvp
            of the row losses and no Hessian product.

    Returns:
        `(outer gradient, cotangent of the first iterate or None)`. Outer penalties are not in it.
    """
    steps = jax.tree.leaves(batches)[0].shape[0]

    def pull_back(
        carry: tuple[PyTree, Smooth], taken: LowerStep, batch: Batch, curved: bool
    ) -> tuple[PyTree, Smooth]:
        gradient, above = carry
        pulled = pull_back_step(levels, outer, taken, batch, above, curved)
        return optax.tree.add(gradient, pulled.gradient), pulled.below

    above = cotangent if isinstance(cotangent, Smooth) else without_moments(cotangent, last.before)
    carry = (optax.tree.zeros_like(outer), above)
    carry = pull_back(carry, last, _at(batches, steps - 1), of_start or steps > 1)
    if earlier is None:
        return carry[0], carry[1] if of_start else None

    def earlier_step(
        carry: tuple[PyTree, Smooth], step: tuple[LowerStep, Batch]
    ) -> tuple[tuple[PyTree, Smooth], None]:
        return pull_back(carry, *step, curved=True), None

    curved_from = 0 if of_start else 1
    inputs = (
        jax.tree.map(lambda x: x[curved_from:], earlier),
        jax.tree.map(lambda x: x[curved_from:-1], batches),
    )
    if steps - 1 > curved_from:
        carry, _ = jax.lax.scan(earlier_step, carry, inputs, reverse=True)
    if of_start:
        return carry
    return pull_back(carry, _at(earlier, 0), _at(batches, 0), curved=False)[0], None


def _at(tree: PyTree, position: int) -> PyTree:
    return jax.tree.map(lambda x: x[position], tree)
