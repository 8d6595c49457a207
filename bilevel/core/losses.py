"""Unreduced losses: a sum and its denominator, for a whole batch (`Mean`) or for each row of it (`RowLosses`).

Dividing is the last thing done, so gradient accumulation, ragged masks and sharding stay exact: means of
micro-batch means weigh a row by the company it happens to keep.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

Reduction = Literal["row", "token", "sum"]
"""What a batch's loss is the mean of: rows' token means, tokens, or rows' token sums."""


def over(total: Any, count: Any) -> Array:
    """The quotient total / count; where nothing counts, at a count of exactly zero, the total itself.

    Counts may be sums of weights and as small as they like: only zero is no denominator.
    """
    return total / jnp.where(jnp.asarray(count) == 0, 1, count)


class Mean(struct.PyTreeNode):
    """A mean that has not been divided yet: `total / count`, both scalars.

    The count is a number of things or the sum of their weights; it is a constant to every derivative.
    """

    total: Any
    count: Any

    @property
    def value(self) -> Float[Array, ""]:
        """The mean itself; 0 for a batch in which nothing counts."""
        return over(self.total, self.count)

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


class RowLosses(struct.PyTreeNode):
    """Losses of the rows of a batch: sums over response tokens and the numbers of these tokens.

    Attributes:
        total: summed token losses, in nats, shape [..., rows].
        count: response tokens, shape [..., rows]; 0 for the filler rows that complete a batch.
    """

    total: Any
    count: Any

    @property
    def means(self) -> Float[Array, "*rows"]:
        """Each row's mean token loss, in nats a token; 0 for filler rows."""
        return over(self.total, self.count)

    def contributions(self, reduction: Reduction = "row") -> Float[Array, "*rows"]:
        """What each row adds to the batch's total at weight one."""
        return self.means if reduction == "row" else self.total

    def denominator(self, reduction: Reduction = "row") -> Float[Array, ""]:
        """What the batch's total is divided by: real rows or response tokens, never weights."""
        counted = self.count if reduction == "token" else self.count > 0
        return jnp.sum(counted.astype(self.total.dtype))

    def weighted(self, weights: Float[Array, "*rows"] | None = None, reduction: Reduction = "row") -> Mean:
        """The batch's loss under row weights: sum_i w_i contribution_i over the denominator."""
        contributions = self.contributions(reduction)
        total = jnp.sum(contributions if weights is None else weights * contributions)
        return Mean(total, self.denominator(reduction))
