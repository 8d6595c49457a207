"""Exact gradient accumulation: sums over micro-batches, divided once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array

from bilevel.core.losses import Mean, over
from bilevel.core.tree import PyTree


def over_micro_batches(
    function: Callable[..., tuple[PyTree, PyTree]], *stacked: PyTree
) -> tuple[PyTree, PyTree]:
    """Sums one output of a function over micro-batches and stacks the other.

    Args:
        function: from one micro-batch's slices to `(to_sum, to_stack)`.
        *stacked: trees whose leaves all have the micro-batch axis first.

    Returns:
        `(sum over micro-batches, outputs with the micro-batch axis first)`.
    """
    if jax.tree.leaves(stacked)[0].shape[0] == 1:  # no loop to compile when there is nothing to accumulate
        summed, kept = function(*jax.tree.map(lambda x: x[0], stacked))
        return summed, jax.tree.map(lambda x: x[None], kept)

    def body(total: PyTree, slices: tuple[PyTree, ...]) -> tuple[PyTree, PyTree]:
        summed, kept = function(*slices)
        return optax.tree.add(total, summed), kept

    first = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], stacked))[0]
    zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), first)
    return jax.lax.scan(body, zeros, stacked)


def mean_value_and_gradient(
    function: Callable[..., Mean], arguments: tuple[PyTree, ...], batches: PyTree
) -> tuple[Mean, tuple[PyTree, ...]]:
    """A mean over micro-batches and its gradient with respect to every argument.

    Args:
        function: `(*arguments, batch) -> Mean`.
        arguments: what to differentiate with respect to.
        batches: batches with a leading micro-batch axis.

    Returns:
        `(mean, gradients)`, the gradients those of `mean.value`.
    """

    def one(batch: Any) -> tuple[tuple[Mean, PyTree], None]:
        def total(*arguments: PyTree) -> tuple[Array, Array]:
            mean = function(*arguments, batch)
            return mean.total, jax.numpy.asarray(mean.count)  # users count in plain integers

        positions = tuple(range(len(arguments)))
        (value, count), gradient = jax.value_and_grad(total, positions, has_aux=True)(*arguments)
        return (Mean(value, count), gradient), None

    (mean, gradient), _ = over_micro_batches(one, batches)
    return mean, divide(gradient, mean.count)


def divide(gradient: PyTree, count: Array) -> PyTree:
    """A summed gradient divided by its count, in the gradient's own dtypes; zero over an empty batch."""
    return jax.tree.map(lambda g: over(g, count).astype(g.dtype), gradient)
