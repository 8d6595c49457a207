"""Training as one differentiable function: what plain reverse and forward mode differentiate."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array

from bilevel.core.hypergradient import Levels
from bilevel.core.lower_steps import Iterate
from bilevel.core.optimizer_step import differentiable_step
from bilevel.core.problem import Batch, Seen
from bilevel.core.tree import PyTree


def training(
    levels: Levels, memory: PyTree, batches: Batch, step: Array | int, checkpoint: bool = False
) -> Callable[[PyTree, Iterate], PyTree]:
    """`(outer, start) -> inner variables after one lower step on each batch`.

    What a weighting remembers or reads of row losses is data to it: no derivative flows through either.

    Args:
        levels: the problem.
        memory: the weighting's memory at the start.
        batches: [steps, micro-batches, ...].
        step: of the solver, for the weighting's memory.
        checkpoint: whether reverse mode keeps the iterates alone and computes each step again.
    """

    def train(outer: PyTree, start: Iterate) -> PyTree:
        def one(carry: tuple[Iterate, PyTree], batch: Batch) -> tuple[tuple, None]:
            iterate, memory = carry
            weighed = levels.lower.weigh(outer, memory, iterate.inner, batch)
            passed = levels.lower.gradient(outer, weighed.weights, iterate.inner, batch, twice=True)
            after = differentiable_step(levels.optimizer, passed.gradient, iterate)
            losses = jax.lax.stop_gradient(passed.row_losses)
            seen = Seen(batch=batch, losses=losses, value_losses=None, step=step)
            return (after, levels.lower.remember(memory, seen)), None

        body = jax.checkpoint(one, prevent_cse=False) if checkpoint else one
        return jax.lax.scan(body, (start, memory), batches)[0][0].inner

    return train
