"""Outer optimizers for row logits that move only the rows a step has seen.

Adam must not move them. An unvisited row gets a tiny gradient of constant sign, which Adam rescales to a full step,
so its logits record how often a row was *visited*, not how good it is. Both rules here subtract the mean over the
visited rows, so that the pool's mean logit does not drift with visits either; with rows drawn without replacement
every row is then visited equally often.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bilevel.core.problem import Batch
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree
from bilevel.weighting.indices import named_ids

_SMALLEST_WEIGHT = 1e-20


def visited_sgd(rate: float, by: str = "row_id") -> optax.GradientTransformationExtraArgs:
    """logit_i <- logit_i - rate * rows_in_batch * (g_i - mean of g over visited rows), visited rows only.

    The factor makes the rate that of one row's own loss, whatever the batch size. It counts the distinct rows (or
    questions): a question moves by the mean over its answers, however many stand in the batch.

    Args:
        rate: logit change for a difference of one nat at weight one.
        by: what has a logit, as in `row_logits`.
    """

    def direction(gradient: Float[Array, " pool"], logits: Float[Array, " pool"]) -> Float[Array, " pool"]:
        return gradient

    return _on_visited(rate, by, direction)


def exponentiated_gradient(rate: float, by: str = "row_id") -> optax.GradientTransformationExtraArgs:
    """w_i <- w_i exp(-rate * (s_i - mean of s over visited rows)), s_i the derivative with respect to the weight.

    Mirror descent on the simplex. In logits it is gradient descent without the softmax's own factor, so a row whose
    weight has become small moves as readily as any other and can return: s_i = g_i / softmax_i, up to a constant
    that subtracting the mean removes. For softmax weights only.

    Args:
        rate: change of log weight for a difference of one nat.
        by: what has a logit, as in `row_logits`.

    References:
        Kivinen & Warmuth, Exponentiated Gradient versus Gradient Descent for Linear Predictors, 1997.
    """

    def direction(gradient: Float[Array, " pool"], logits: Float[Array, " pool"]) -> Float[Array, " pool"]:
        shares = jax.nn.softmax(logits) * logits.size
        # Below this weight a row falls no further. Near the smallest float, gradient and share lose their digits
        # one after the other, and their ratio can be anything.
        return gradient / jnp.maximum(shares, _SMALLEST_WEIGHT)

    return _on_visited(rate, by, direction)


Logits = Float[Array, " pool"]


def _on_visited(
    rate: float, by: str, direction: Callable[[Logits, Logits], Logits]
) -> optax.GradientTransformationExtraArgs:
    check_ranges({"rate": rate}, ("rate", rate > 0, "positive"))

    def update(
        gradient: PyTree,
        state: optax.EmptyState,
        params: PyTree,
        *,
        batch: Batch,
        **_: object,
    ) -> tuple[PyTree, optax.EmptyState]:
        ids = named_ids(batch, by).reshape(-1)

        def update_table(gradient: Logits, logits: Logits) -> Logits:
            real = jnp.where(ids >= 0, ids, logits.size)
            seen = jnp.zeros(logits.shape, bool).at[real].set(True, mode="drop")
            distinct = jnp.sum(seen)
            step = direction(gradient, logits)
            mean = jnp.sum(jnp.where(seen, step, 0.0)) / jnp.maximum(distinct, 1)
            return -rate * distinct * jnp.where(seen, step - mean, 0.0)

        # Over trees, so that the rule can move the tables of a product, or those that a mask leaves.
        return jax.tree.map(update_table, gradient, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
