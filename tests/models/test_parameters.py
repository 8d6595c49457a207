from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import DecoderConfig


def config(kv_heads: int = 2, tied: bool = True, biases: bool = False) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=11,
        width=16,
        layers=3,
        heads=4,
        kv_heads=kv_heads,
        mlp_width=10,
        head_dim=6,
        tied_embeddings=tied,
        attention_bias=biases,
        output_bias=biases,
        mlp_bias=biases,
    )


@cache
def fresh() -> dict:
    return models.init(config(kv_heads=4), jax.random.key(0))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_values_shapes_and_axes_come_from_one_declaration(kv_heads: int, tied: bool, biases: bool) -> None:
    declaration = models.declare(config(kv_heads, tied, biases))
    params = jax.eval_shape(lambda key: models.init(config(kv_heads, tied, biases), key), jax.random.key(0))
    axes = models.logical_axes(declaration)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, models.abstract_values(declaration))
    ranks = jax.tree.map(lambda value, names: value.ndim == len(names), params, axes)
    assert all(jax.tree.leaves(ranks))
    assert params["layers"]["attention"]["key"]["kernel"].shape == (3, 16, kv_heads * 6)
    assert axes["layers"]["attention"]["key"]["kernel"] == ("layers", "width", "kv_heads")
    assert ("unembedding" in params) is not tied
    assert ("bias" in params["layers"]["attention"]["query"]) is biases
    assert ("bias" in params["layers"]["mlp"]["down"]) is biases


def test_fresh_values_have_the_declared_spread() -> None:
    wide = DecoderConfig(
        vocab_size=500, width=64, layers=4, heads=4, kv_heads=4, mlp_width=100, init_std=0.03
    )
    params = models.init(wide, jax.random.key(1))
    spread = {
        "table": (params["embedding"]["table"], 0.03),
        "query": (params["layers"]["attention"]["query"]["kernel"], 64**-0.5),
        "output": (params["layers"]["attention"]["output"]["kernel"], (64 * 2 * 4) ** -0.5),
        "down": (params["layers"]["mlp"]["down"]["kernel"], (100 * 2 * 4) ** -0.5),
    }
    for name, (values, expected) in spread.items():
        np.testing.assert_allclose(np.std(values), expected, rtol=0.05, err_msg=name)
    assert np.all(params["final_norm"]["scale"] == 1)


def test_every_tensor_and_layer_is_drawn_on_its_own() -> None:
    attention = fresh()["layers"]["attention"]
    assert not np.array_equal(attention["key"]["kernel"], attention["value"]["kernel"])
    assert not np.array_equal(attention["key"]["kernel"][0], attention["key"]["kernel"][1])


def test_types_agree_on_the_values() -> None:
    narrow = models.init(config(kv_heads=4), jax.random.key(0), jnp.bfloat16)
    chex.assert_trees_all_equal(narrow, jax.tree.map(lambda x: x.astype(jnp.bfloat16), fresh()))
