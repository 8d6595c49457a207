"""Compiled functions hand closed-over arrays over instead of writing them into the program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.core import Compiled

SIZE = 500
KERNEL = jax.random.normal(jax.random.key(0), (SIZE, SIZE)) / SIZE**0.5


@partial(jax.checkpoint, prevent_cse=False)
def layer(x, _):
    return jnp.tanh(x @ KERNEL), None


def loss(x):
    deep, _ = jax.lax.scan(layer, x, None, length=3)
    branch = jax.lax.cond(jnp.sum(deep) > 0, lambda x: x @ KERNEL, lambda x: x, deep)
    return jnp.sum(jax.lax.map(lambda row: row @ KERNEL, branch) ** 2)


FUNCTIONS = {
    "value": loss,
    "gradient": jax.grad(loss),
    "jvp": lambda x: jax.jvp(loss, (x,), (x,)),
    "Hessian-vector product": lambda x: jax.jvp(jax.grad(loss), (x,), (x,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_programs_compute_the_same_and_hold_no_closed_over_array(name):
    x = jax.random.normal(jax.random.key(1), (2, SIZE))
    plain, ours = jax.jit(FUNCTIONS[name]), Compiled(FUNCTIONS[name])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), plain(x), ours(x))
    texts = [function.lower(x).as_text() for function in (plain, ours)]
    # A quarter of a million numbers, eight hexadecimal digits each.
    assert len(texts[0]) > 8 * SIZE**2 > 10 * len(texts[1])


def test_signatures_share_programs_and_static_arguments_do_not():
    traced = []

    def function(x, *, updates=()):
        traced.append(updates)
        return {"y": x["x"] + 1, "none": None}

    ours = Compiled(function)
    for value in (1.0, 2.0):
        assert ours({"x": jnp.float32(value)})["y"] == value + 1
        assert ours({"x": np.float32(value)}, updates=("inner",)) == {"y": value + 1, "none": None}
    assert traced == [(), ("inner",)]
    assert ours({"x": jnp.zeros(3)})["y"].shape == (3,)
    assert len(traced) == 3


def test_donated_arguments_are_used_up_and_closed_over_arrays_are_not():
    kept = jnp.arange(4.0)
    ours = Compiled(lambda x, y: x + y + kept, donate_argnums=(1,))
    x, y = jnp.ones(4), jnp.ones(4)
    np.testing.assert_array_equal(ours(x, y), jnp.arange(4.0) + 2)
    assert y.is_deleted()
    assert not x.is_deleted()
    np.testing.assert_array_equal(ours(x, jnp.ones(4)), jnp.arange(4.0) + 2)


def test_closed_over_arrays_stay_split_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    kernel = jax.device_put(jnp.ones((16, 4)), split)
    x = jax.device_put(jnp.ones((8, 16)), split)
    ours = Compiled(lambda x: x @ kernel)
    np.testing.assert_array_equal(ours(x), np.full((8, 4), 16.0))
    # Each device holds an eighth of both.
    assert ours.lower(x).compile().memory_analysis().argument_size_in_bytes == 4 * (2 * 4 + 16)


def test_results_lie_where_they_are_wanted():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def results(x):
        return {"pair": (x, 2 * x), "sum": jnp.sum(x), "free": x + 1, "none": None}

    wanted = {"pair": split, "sum": whole, "free": None, "none": split}
    found = Compiled(results, out_shardings=wanted)(jnp.arange(16.0))
    assert [leaf.sharding for leaf in found["pair"]] == [split, split]
    assert found["sum"].sharding == whole
    assert found["none"] is None
    np.testing.assert_array_equal(found["free"], jnp.arange(16.0) + 1)
    everything = Compiled(results, out_shardings=whole)(jnp.arange(16.0))
    assert {leaf.sharding for leaf in jax.tree.leaves(everything)} == {whole}
