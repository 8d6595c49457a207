"""Scores that look at no training, or hardly: what an estimate must beat to be worth its price."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from bilevel.attribution.retraining import Retraining
from bilevel.attribution.trusted import Trusted
from bilevel.core import Compiled
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree, norm
from bilevel.schedule.batches import in_turn

CONTROLS = ("loss", "length", "gradient_cosine", "random")


def control_scores(
    retraining: Retraining, inner: PyTree, seed: int = 0
) -> dict[str, Float[np.ndarray, " pool"]]:
    """What simple rules say of each row, below zero for a row that should help.

        loss              minus its loss under the trained model: a row that is not learned yet has more to give
        length            minus its response tokens
        gradient_cosine   minus the cosine of its gradient and the trusted loss's at the trained model
        random            a normal number

    Args:
        retraining: the training.
        inner: the trained model.
        seed: of `random`.
    """
    given = retraining
    above = Trusted(given, given.table).mean(inner).inner

    def one_row(row: Batch, inner: PyTree, above: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        batch = jax.tree.map(lambda x: x[None], row)

        def loss(inner: PyTree) -> tuple[jax.Array, jax.Array]:
            losses = given.model.first_order(inner, batch)
            return losses.means[0], losses.count[0]

        (value, count), gradient = jax.value_and_grad(loss, has_aux=True)(inner)
        lengths = jnp.maximum(norm(gradient) * norm(above), jnp.finfo(jnp.float32).tiny)
        return value, count, optax.tree.vdot(gradient, above) / lengths

    # A row at a time: gradients of a batch's rows side by side would take as many models.
    rows = Compiled(
        lambda batch, inner, above: jax.lax.map(lambda row: one_row(row, inner, above), dict(batch))
    )
    found = []
    size = given.layout.rounded(given.batch_rows)
    for ids, batch in in_turn(given.pool, size, given.layout):
        found.append(np.stack(given.layout.gather(rows(batch, inner, above)))[:, ids >= 0])
    loss, length, cosine = np.concatenate(found, axis=1).astype(np.float64)
    return {
        "loss": -loss,
        "length": -length,
        "gradient_cosine": -cosine,
        "random": np.random.default_rng(seed).normal(size=len(loss)),
    }
