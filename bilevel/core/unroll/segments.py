"""A segment of a training run: taken and recorded, then pulled back. Two pure functions, compiled once a length."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt32

from bilevel.core.bits import bit_sums
from bilevel.core.hypergradient import Levels
from bilevel.core.lower_level import LowerLevel
from bilevel.core.lower_steps import Iterate, LowerStep, record_of, take_lower_step
from bilevel.core.optimizer_step import Smooth
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree, norm
from bilevel.core.unroll.mixed import pull_back_step


class Reached(NamedTuple):
    """Where a training run stands: its iterate, and what the weighting remembers."""

    iterate: Iterate
    memory: PyTree


class Recorded(NamedTuple):
    """A segment as it was taken.

    Attributes:
        end: after its last step.
        steps: records of its steps, stacked.
        bits: sums over all bits of `end`, see `bit_sums`.
    """

    end: Reached
    steps: LowerStep
    bits: UInt32[Array, "leaves 2"]


class Pulled(NamedTuple):
    """What pulling back has reached.

    Attributes:
        gradient: the outer gradient of the steps that are pulled back.
        cotangent: of the iterate before them.
    """

    gradient: PyTree
    cotangent: Smooth


class Trace(NamedTuple):
    """What was seen at each step while it was pulled back.

    Attributes:
        cotangent: norm of the cotangent of the inner variables after the step.
        signal: sum of the absolute signal: of row weights, of the row scores that the step adds.
    """

    cotangent: Float[Array, "*queries steps"]
    signal: Float[Array, "*queries steps"]


def record(
    lower: LowerLevel,
    optimizer: optax.GradientTransformation,
    outer: PyTree,
    start: Reached,
    batches: Batch,
    first: Array | int,
) -> Recorded:
    """Takes the steps of a segment and keeps what pulling them back asks for.

    Sweep and replay share this one program, records or no records: of two programs that compute the same, the last bits
    may differ.

    Args:
        lower: the lower level.
        optimizer: of the inner variables.
        outer: outer variables.
        start: where the segment begins.
        batches: [steps, micro-batches, ...].
        first: number of its first step in the run, for the weighting's memory.
    """
    step = _step(lower, optimizer, outer)
    end, steps = jax.lax.scan(step, start, (batches, _numbers(batches, first)))
    return Recorded(end, steps, bit_sums(end))


def advance(
    lower: LowerLevel,
    optimizer: optax.GradientTransformation,
    outer: PyTree,
    start: Reached,
    batches: Batch,
    first: Array | int,
) -> Reached:
    """Takes the steps of a segment, for nothing but its end; arguments as those of `record`."""
    step = _step(lower, optimizer, outer)
    return jax.lax.scan(
        lambda at, given: (step(at, given)[0], None), start, (batches, _numbers(batches, first))
    )[0]


def pull_back(
    levels: Levels, outer: PyTree, steps: LowerStep, batches: Batch, pulled: Pulled
) -> tuple[Pulled, Trace]:
    """Pulls a cotangent back through a recorded segment.

    Args:
        levels: the problem; its lower level with every derivative.
        outer: outer variables.
        steps: records of its steps, stacked.
        batches: of its steps.
        pulled: what the steps after it left.
    """

    def one(pulled: Pulled, step: tuple[LowerStep, Batch]) -> tuple[Pulled, Trace]:
        found = pull_back_step(levels, outer, *step, pulled.cotangent)
        size = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(found.signal))
        seen = Trace(norm(pulled.cotangent.inner), jnp.asarray(size, jnp.float32))
        return Pulled(optax.tree.add(pulled.gradient, found.gradient), found.below), seen

    return jax.lax.scan(one, pulled, (steps, batches), reverse=True)


def _step(
    lower: LowerLevel, optimizer: optax.GradientTransformation, outer: PyTree
) -> Callable[[Reached, tuple[Batch, Array]], tuple[Reached, LowerStep]]:
    def step(at: Reached, given: tuple[Batch, Array]) -> tuple[Reached, LowerStep]:
        batch, number = given
        iterate, memory, visit = take_lower_step(
            lower, optimizer, outer, at.iterate, at.memory, batch, number
        )
        after = jax.tree.map(_as_before, at, Reached(iterate, memory))
        return after, record_of(at.iterate, at.memory, visit)

    return step


def _numbers(batches: Batch, first: Array | int) -> Array:
    return first + jnp.arange(jax.tree.leaves(batches)[0].shape[0], dtype=jnp.int32)


def _as_before(before: Array, after: Array) -> Array:
    """In the type of what it replaces, strongly: a weak type would be lost where a state is kept."""
    if jax.dtypes.issubdtype(after.dtype, jax.dtypes.prng_key):
        return after
    return jax.lax.convert_element_type(after, before.dtype)
