import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bilevel.errors import InputError
from bilevel.layout.devices import data_mesh, place_batch, replicate


def batch(rows: int, *leading: int) -> dict[str, np.ndarray]:
    tokens = np.arange(np.prod((*leading, rows, 3)), dtype=np.int32).reshape(*leading, rows, 3)
    return {"tokens": tokens, "row_id": tokens[..., 0]}


def test_mesh_spans_every_local_device() -> None:
    mesh = data_mesh()
    assert mesh.shape == {"data": 8}
    assert data_mesh(jax.devices()[:2]).shape == {"data": 2}


def test_rows_are_split_in_order_and_leading_axes_stay_whole() -> None:
    placed = place_batch(batch(16, 2), data_mesh(), axis=1)
    shards = sorted(placed["tokens"].addressable_shards, key=lambda shard: shard.device.id)
    assert [shard.data.shape for shard in shards] == [(2, 2, 3)] * 8
    np.testing.assert_array_equal(shards[3].data, batch(16, 2)["tokens"][:, 6:8])
    assert {shard.data.shape for shard in placed["row_id"].addressable_shards} == {(2, 2)}


def test_sharded_gradient_equals_the_plain_one_and_is_on_every_device() -> None:
    mesh = data_mesh()
    inner = {"w": jnp.linspace(-1.0, 1.0, 3)}

    def loss(inner: dict[str, jax.Array], rows: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(jnp.tanh(rows["tokens"] @ inner["w"]) * (rows["row_id"] % 5))

    plain = jax.jit(jax.value_and_grad(loss))(inner, batch(16))
    spread = jax.jit(jax.value_and_grad(loss))(replicate(inner, mesh), place_batch(batch(16), mesh))
    np.testing.assert_allclose(spread[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(spread[1]["w"], plain[1]["w"], rtol=1e-6)
    assert len(spread[1]["w"].sharding.device_set) == 8
    assert spread[1]["w"].sharding.is_fully_replicated


def test_what_is_split_over_the_mesh_stays_split_and_the_rest_is_copied_to_every_device() -> None:
    mesh = data_mesh()
    split = jax.device_put(jnp.ones((8, 3)), NamedSharding(mesh, PartitionSpec("data")))
    placed = replicate({"split": split, "whole": np.ones(3), "one": jnp.ones(())}, mesh)
    shards = {name: {shard.data.shape for shard in x.addressable_shards} for name, x in placed.items()}
    assert shards == {"split": {(1, 3)}, "whole": {(3,)}, "one": {()}}
    assert all(len(x.sharding.device_set) == 8 for x in placed.values())


@pytest.mark.parametrize(("rows", "fitting"), [(30, 6), (7, 7), (12, 6), (1, 1)])
def test_batch_that_does_not_divide_is_refused_with_both_numbers_and_a_remedy(
    rows: int, fitting: int
) -> None:
    with pytest.raises(InputError) as caught:
        place_batch(batch(rows), data_mesh())
    message = str(caught.value)
    assert f"{rows} rows" in message
    assert "8 devices" in message
    assert f"a multiple of 8 rows, or {fitting} of the devices" in message
    assert place_batch(batch(rows), data_mesh(jax.devices()[:fitting]))["row_id"].shape == (rows,)
