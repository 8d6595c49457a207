from collections.abc import Callable
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from models import ModelError, from_linen, from_nnx

VOCAB, WIDTH = 13, 6
TOKENS = jax.random.randint(jax.random.key(1), (3, 7), 0, VOCAB)


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = linen.Embed(VOCAB, WIDTH)(tokens)
        x = jnp.tanh(linen.Dense(WIDTH)(x))
        return linen.Dense(VOCAB)(x)


class NnxModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Linear(WIDTH, VOCAB, rngs=rngs)])
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.dropout(jnp.tanh(self.layers[0](self.embed(tokens))))
        return self.layers[1](x)


@cache
def case(kind: str) -> tuple[Callable, dict]:
    """What the adapter applies, and parameters."""
    if kind == "linen":
        functions = from_linen(LinenModel())
        return functions.apply, functions.init(jax.random.key(0), TOKENS)
    functions = from_nnx(NnxModel(nnx.Rngs(0)))
    return functions.apply, functions.init()


def direct(layers: dict, tokens: jax.Array) -> jax.Array:
    x = layers["embed"]["embedding"][tokens]
    x = jnp.tanh(x @ layers["in"]["kernel"] + layers["in"]["bias"])
    return x @ layers["out"]["kernel"] + layers["out"]["bias"]


def derivatives(apply: Callable, params: dict) -> tuple:
    """Logits, the gradient of their log-softmax, and a Hessian-vector product along cosines of the parameters."""
    gradient = jax.grad(lambda params: jnp.sum(jax.nn.log_softmax(apply(params, TOKENS)) ** 2))
    direction = jax.tree.map(jnp.cos, params)
    return jax.jit(lambda p: (apply(p, TOKENS), *jax.jvp(gradient, (p,), (direction,))))(params)


def named(kind: str, tree: dict) -> dict:
    """The three layers of either module under the same names."""
    if kind == "linen":
        return {"embed": tree["Embed_0"], "in": tree["Dense_0"], "out": tree["Dense_1"]}
    return {"embed": tree["embed"], "in": tree["layers"]["0"], "out": tree["layers"]["1"]}


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_derivatives_equal_those_of_the_direct_form(kind: str) -> None:
    apply, params = case(kind)
    logits, gradient, product = derivatives(apply, params)
    expected = derivatives(direct, named(kind, params))
    ours = logits, named(kind, gradient), named(kind, product)
    chex.assert_trees_all_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert np.abs(logits).max() > 0.3


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_parameters_are_nested_dicts_of_arrays(kind: str) -> None:
    _, params = case(kind)
    assert type(params) is dict
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert all(type(entry.key) is str for path in paths for entry in path)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert jax.tree.structure(jax.tree.map(jnp.ones_like, params)) == jax.tree.structure(params)


def test_changes_to_a_module_do_not_reach_its_functions() -> None:
    module = NnxModel(nnx.Rngs(0))
    functions = from_nnx(module)
    before = functions.apply(functions.init(), TOKENS)
    module.embed.embedding[...] = jnp.zeros((VOCAB, WIDTH))
    np.testing.assert_array_equal(functions.apply(functions.init(), TOKENS), before)


def test_random_streams_begin_anew_with_every_call() -> None:
    functions = from_nnx(nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    ones = jnp.ones((4, 8))
    dropped = functions.apply(functions.init(), ones)
    assert 0 < np.sum(np.asarray(dropped) == 0) < 32
    np.testing.assert_array_equal(functions.apply(functions.init(), ones), dropped)


def test_modules_with_state_are_refused() -> None:
    class Normed(linen.Module):
        @linen.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            return linen.BatchNorm(use_running_average=True)(linen.Embed(VOCAB, WIDTH)(tokens))

    with pytest.raises(ModelError, match="Normed holds batch_stats beside its parameters"):
        from_linen(Normed()).init(jax.random.key(0), TOKENS)
    with pytest.raises(ModelError, match="BatchNorm holds BatchStat beside its parameters"):
        from_nnx(nnx.BatchNorm(WIDTH, rngs=nnx.Rngs(0)))
