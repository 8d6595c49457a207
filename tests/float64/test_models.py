"""Hessian-vector products of the decoder against central differences of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import DecoderConfig

TOKENS = jax.random.randint(jax.random.key(1), (3, 7), 0, 13)
BATCH = {"tokens": TOKENS, "segments": jnp.array([[1] * 7, [1] * 3 + [2] * 3 + [0], [0] * 7])}


@pytest.mark.parametrize(
    ("kv_heads", "tied", "remat"), [(1, False, "none"), (2, True, "dots"), (4, True, "full")]
)
def test_hessian_vector_products_equal_finite_differences(kv_heads: int, tied: bool, remat: str) -> None:
    config = DecoderConfig(
        vocab_size=13,
        width=8,
        layers=2,
        heads=4,
        kv_heads=kv_heads,
        mlp_width=12,
        tied_embeddings=tied,
        attention_bias=True,
        mlp_bias=True,
        # The norm of a small embedding is too curved for a difference of this step.
        init_std=0.5,
    )
    params, direction = (models.init(config, jax.random.key(seed), jnp.float64) for seed in (0, 2))

    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        return jnp.mean(models.token_scores(params, BATCH, config, remat=remat).loss)

    @jax.jit
    def moved(step: float) -> dict:
        return gradient(jax.tree.map(lambda x, v: x + step * v, params, direction))

    step = 1e-5
    differences = jax.tree.map(lambda up, down: (up - down) / (2 * step), moved(step), moved(-step))
    products = jax.jit(lambda: jax.jvp(gradient, (params,), (direction,))[1])()
    for path, product in jax.tree_util.tree_leaves_with_path(products):
        difference = dict(jax.tree_util.tree_leaves_with_path(differences))[path]
        scale = np.max(np.abs(difference))
        assert product.dtype == jnp.float64
        assert scale > 0, jax.tree_util.keystr(path)
        np.testing.assert_allclose(product / scale, difference / scale, atol=1e-7)
