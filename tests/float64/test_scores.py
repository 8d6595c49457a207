"""Scores of a few positions at a time against those of all positions at once, in every derivative."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

import models
from models import DecoderConfig

SIZES = {"vocab_size": 19, "width": 8, "layers": 1, "heads": 2, "kv_heads": 1, "mlp_width": 12}
TOKENS = jax.random.randint(jax.random.key(1), (3, 7), 0, 19)
SEGMENTS = {
    "padded": jnp.array([[1] * 7, [1] * 4 + [0] * 3, [0] * 7]),
    "packed": jnp.array([[1] * 3 + [2] * 4, [1] * 2 + [2] * 2 + [3] * 2 + [0], [1] * 7]),
}


@pytest.mark.parametrize(("form", "tied"), [("padded", False), ("packed", True)])
def test_every_derivative_is_that_of_the_whole(form: str, tied: bool) -> None:
    config = DecoderConfig(**SIZES, tied_embeddings=tied)
    batch = {"tokens": TOKENS, "segments": SEGMENTS[form]}
    params, direction = (models.init(config, jax.random.key(seed), jnp.float64) for seed in (0, 2))
    weight = jax.random.normal(jax.random.key(3), TOKENS.shape, jnp.float64)

    @partial(jax.jit, static_argnums=0)
    def results(chunk: int) -> tuple:
        def losses(params: dict) -> jax.Array:
            return models.token_scores(params, batch, config, chunk=chunk).loss

        gradient = jax.grad(lambda params: jnp.sum(weight * losses(params)))
        return (
            models.token_scores(params, batch, config, chunk=chunk),
            jax.jvp(losses, (params,), (direction,))[1],
            jax.jvp(gradient, (params,), (direction,)),
        )

    whole = results(7)
    assert whole[0].loss.dtype == jnp.float64
    # Pieces that divide the length, and those that do not.
    for chunk in (1, 3):
        chex.assert_trees_all_close(results(chunk), whole, rtol=1e-10, atol=1e-10)
