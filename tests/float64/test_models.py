"""Hessian-vector products of the decoder against central differences of its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import models
from models import DecoderConfig, RopeScaling
from tests.zoo import slope_at_zero

TOKENS = jax.random.randint(jax.random.key(1), (3, 7), 0, 13)
BATCH = {"tokens": TOKENS, "segments": jnp.array([[1] * 7, [1] * 3 + [2] * 3 + [0], [0] * 7])}


BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
GPT2 = BIASES | {"positions": "learned", "norm": "layer", "mlp": "plain", "tied_embeddings": True}
LLAMA3 = RopeScaling(4.0, 1.0, 4.0, 12)
VARIANTS = {
    "llama": ({"kv_heads": 1, "tied_embeddings": False} | BIASES, "none"),
    "llama 3": ({"kv_heads": 2, "rope_scaling": LLAMA3, "rope_theta": 30.0, "head_dim": 6}, "full"),
    "mistral": ({"kv_heads": 4, "window": 3}, "dots"),
    "qwen 2": ({"kv_heads": 2, "attention_bias": True}, "dots"),
    "qwen 3": ({"kv_heads": 2, "qk_norm": True, "head_dim": 4}, "full"),
    "gpt-2": ({"kv_heads": 4, "max_positions": 9} | GPT2, "dots"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_hessian_vector_products_equal_finite_differences(name: str) -> None:
    changes, remat = VARIANTS[name]
    # The norm of a small embedding is too curved for a difference of this step.
    sizes = {"vocab_size": 13, "width": 8, "layers": 2, "heads": 4, "mlp_width": 12, "init_std": 0.5}
    config = DecoderConfig(**sizes, **changes)
    params, direction = (models.init(config, jax.random.key(seed), jnp.float64) for seed in (0, 2))

    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        return jnp.mean(models.token_scores(params, BATCH, config, remat=remat).loss)

    @jax.jit
    def moved(step: float) -> jax.Array:
        return ravel_pytree(gradient(jax.tree.map(lambda x, v: x + step * v, params, direction)))[0]

    differences = ravel_pytree(params)[1](slope_at_zero(moved))
    products = jax.jit(lambda: jax.jvp(gradient, (params,), (direction,))[1])()
    for path, product in jax.tree_util.tree_leaves_with_path(products):
        difference = dict(jax.tree_util.tree_leaves_with_path(differences))[path]
        # A bias of the keys changes nothing where they are not turned: there, both are noise.
        scale = max(np.max(np.abs(difference)), 1e-3)
        assert product.dtype == jnp.float64
        assert scale > 1e-3 or "['key']['bias']" in jax.tree_util.keystr(path)
        np.testing.assert_allclose(product / scale, difference / scale, atol=1e-7)
