"""Training as one differentiable function: what plain reverse and forward mode differentiate."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel.core.hypergradient import Levels
from bilevel.core.lower_steps import Iterate
from bilevel.core.optimizer_step import differentiable_step, is_dead
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree


def training(
    levels: Levels, memory: PyTree, batches: Batch, checkpoint: bool = False
) -> Callable[[PyTree, Iterate], PyTree]:
    """Returns `(outer, start) -> inner variables after one lower step on each batch`.

    What a weighting remembers or reads of row losses is data to it: no derivative flows through either.

    Args:
        levels: the problem.
        memory: the weighting's memory at the start.
        batches: [steps, micro-batches, ...].
        checkpoint: whether reverse mode keeps the iterates alone and computes each step again.
    """

    def train(outer: PyTree, start: Iterate) -> PyTree:
        def body(carry: tuple[Iterate, PyTree, PyTree], batch: Batch) -> tuple[tuple, None]:
            iterate, memory, dead = carry
            weighed = levels.lower.weigh(outer, memory, iterate.inner, batch)
            passed = levels.lower.gradient(outer, weighed.weights, iterate.inner, batch, twice=True)
            dead = jax.tree.map(jnp.logical_and, dead, is_dead(passed.gradient))
            after = differentiable_step(levels.optimizer, passed.gradient, iterate, dead)
            losses = jax.lax.stop_gradient(passed.row_losses)
            return (after, levels.lower.remember(memory, batch, losses), dead), None

        dead = jax.tree.map(lambda x: jnp.ones(x.shape, bool), start.inner)
        step = jax.checkpoint(body, prevent_cse=False) if checkpoint else body
        return jax.lax.scan(step, (start, memory, dead), batches)[0][0].inner

    return train
