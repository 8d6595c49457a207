"""Taking lower steps, and keeping of them what an estimator that looks back will ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from bilevel.core.lower_level import LowerLevel, LowerPass, Visit, Weighed
from bilevel.core.problem import Batch, Seen
from bilevel.core.tree import PyTree


class Iterate(NamedTuple):
    """Inner variables and the state of the optimizer that moves them."""

    inner: PyTree
    optimizer: PyTree


class LowerStep(NamedTuple):
    """A lower step as it was taken. Stacked, every leaf has the step axis first.

    Attributes:
        before: the iterate before it.
        memory: the weighting's memory before it.
        gradient: the inner gradient that the optimizer was given.
        weights: row weights, [micro, rows]; None for a general problem.
        losses: the row losses that the weights were made from; None where they need none.
    """

    before: Iterate
    memory: PyTree
    gradient: PyTree
    weights: Any
    losses: Any


class LookBack(NamedTuple):
    """The steps that an estimator differentiates through.

    Attributes:
        steps: how many they are.
        start: the iterate before the first of them.
        memory: the weighting's memory before the first of them.
        earlier: all of them but the last, stacked; None if there is only the last, or if none were to be kept.
    """

    steps: int
    start: Iterate
    memory: PyTree
    earlier: LowerStep | None


class LowerSteps(NamedTuple):
    """What taking K lower steps left.

    Attributes:
        last: before the last step.
        last_memory: the weighting's memory before the last step.
        end: after the last step.
        memory: the weighting's memory after the last step.
        passed: the last step's gradient pass.
        weighed: the last batch under the outer variables.
        look_back: the steps before, as far as they were asked for.
        cross_signal: at `last`, see `Visit`.
    """

    last: Iterate
    last_memory: PyTree
    end: Iterate
    memory: PyTree
    passed: LowerPass
    weighed: Weighed
    look_back: LookBack
    cross_signal: Callable[[PyTree], PyTree] | None = None


def take_lower_steps(
    lower: LowerLevel,
    optimizer: optax.GradientTransformation,
    *,
    outer: PyTree,
    memory: PyTree,
    start: Iterate,
    lower_batches: Batch,
    step: Array | int,
    looks_back: int | None = 1,
    keeps_steps: bool = False,
    keeps_pass: bool = False,
    of_value: bool = False,
) -> LowerSteps:
    """Takes one optimizer step on each lower batch.

    Args:
        lower: the lower level.
        optimizer: of the inner variables.
        outer: outer variables.
        memory: the weighting's memory.
        start: the iterate to begin with.
        lower_batches: [lower steps, micro-batches, ...].
        step: of the solver, for the weighting's memory.
        looks_back: of how many steps, counted from the last, an estimator wants the start; None for all.
        keeps_steps: whether it wants a record of each of them.
        keeps_pass: whether it wants what the last step's forward pass left.
        of_value: whether the iterate is the copy that stands for the lower level's optimum, see `Seen`.
    """
    steps = jax.tree.leaves(lower_batches)[0].shape[0]
    looked = steps if looks_back is None else min(looks_back, steps)

    def take(
        iterate: Iterate, memory: PyTree, batches: Batch, keep: bool = False
    ) -> tuple[Iterate, PyTree, Visit]:
        return take_lower_step(
            lower, optimizer, outer, iterate, memory, batches, step, keeps_pass=keep, of_value=of_value
        )

    def earlier_step(
        carry: tuple[Iterate, PyTree], batches: Batch, keep: bool
    ) -> tuple[tuple[Iterate, PyTree], LowerStep | None]:
        after, remembered, visit = take(*carry, batches)
        return (after, remembered), record_of(*carry, visit) if keep else None

    def walk(carry: tuple[Iterate, PyTree], begin: int, end: int, keep: bool) -> tuple[Any, LowerStep | None]:
        if begin == end:
            return carry, None
        batches = jax.tree.map(lambda x: x[begin:end], lower_batches)
        return jax.lax.scan(lambda carry, batches: earlier_step(carry, batches, keep), carry, batches)

    begun, begun_memory = walk((start, memory), 0, steps - looked, keep=False)[0]
    (last, last_memory), earlier = walk((begun, begun_memory), steps - looked, steps - 1, keep=keeps_steps)
    last_batches = jax.tree.map(lambda x: x[-1], lower_batches)
    end, memory, visit = take(last, last_memory, last_batches, keeps_pass)
    look_back = LookBack(looked, begun, begun_memory, earlier)
    return LowerSteps(
        last, last_memory, end, memory, visit.passed, visit.weighed, look_back, visit.cross_signal
    )


def take_lower_step(
    lower: LowerLevel,
    optimizer: optax.GradientTransformation,
    outer: PyTree,
    iterate: Iterate,
    memory: PyTree,
    batches: Batch,
    step: Array | int,
    *,
    keeps_pass: bool = False,
    of_value: bool = False,
) -> tuple[Iterate, PyTree, Visit]:
    """One optimizer step on one lower batch, [micro-batches, ...]; arguments as those of `take_lower_steps`.

    Returns:
        `(iterate, memory)` after it, and what it saw of its batch.
    """
    visit = lower.visit(outer, memory, iterate.inner, batches, keep=keeps_pass)
    after = descend(optimizer, iterate, visit.passed.gradient)
    losses = visit.passed.row_losses
    seen = Seen(batch=batches, losses=losses, value_losses=losses if of_value else None, step=step)
    return after, lower.remember(memory, seen), visit


def record_of(iterate: Iterate, memory: PyTree, visit: Visit) -> LowerStep:
    """What is kept of a lower step that began from an iterate and a memory."""
    return LowerStep(iterate, memory, visit.passed.gradient, visit.weighed.weights, visit.weighed.losses)


def descend(
    optimizer: optax.GradientTransformation, iterate: Iterate, gradient: PyTree, **extra: Any
) -> Iterate:
    """The iterate after one optimizer step; `extra` reaches transformations that ask for it."""
    update = optax.with_extra_args_support(optimizer).update
    updates, state = update(gradient, iterate.optimizer, iterate.inner, **extra)
    return Iterate(optax.apply_updates(iterate.inner, updates), state)
