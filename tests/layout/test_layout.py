import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bilevel.data import ArrayRows
from bilevel.errors import InputError
from bilevel.layout import Layout, data_layout


def batch(rows: int, *leading: int) -> dict[str, np.ndarray]:
    tokens = np.arange(np.prod((*leading, rows, 3)), dtype=np.int32).reshape(*leading, rows, 3)
    return {"tokens": tokens, "row_id": tokens[..., 0]}


def test_batches_are_split_over_every_device() -> None:
    layout = data_layout()
    assert layout.mesh.shape == {"data": 8}
    assert (layout.shares, layout.rounded(1), layout.rounded(16), layout.rounded(17)) == (8, 8, 16, 24)
    assert data_layout(jax.devices()[:2]).shares == 2
    assert layout.first
    assert layout.agree(True)
    assert not layout.agree(False)


def two_axes() -> Layout:
    """Four ways to split a batch; two devices hold each row."""
    mesh = jax.make_mesh((2, 2, 2), ("replica", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    return Layout(mesh, ("replica", "data"))


def test_a_batch_is_split_over_the_axes_that_share_it() -> None:
    layout = two_axes()
    assert layout.shares == 4
    placed = layout.batch(ArrayRows({"x": np.arange(9.0)}), np.array([[3, 1, -1, 5, 8, 0, 2, 4]]))
    assert {shard.data.shape for shard in placed["x"].addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(layout.gather(placed)["x"], [[3, 1, 0, 5, 8, 0, 2, 4]])
    assert isinstance(layout.gather(placed)["x"], np.ndarray)


def test_a_stored_array_goes_where_this_mesh_has_room_for_it() -> None:
    layout = two_axes()

    def spec(shape: tuple[int, ...], *axes: object) -> PartitionSpec:
        return layout.stored("table", shape, axes).spec

    assert spec((8, 3), "data", None) == PartitionSpec("data", None)
    assert spec((8, 4), ["replica", "data"], "model") == PartitionSpec(("replica", "data"), "model")
    # An axis that this mesh has not, and a length that an axis does not divide: whole on each device.
    assert spec((8, 4), "fsdp", "model") == PartitionSpec(None, "model")
    assert spec((7, 4), "data", None) == PartitionSpec(None, None)


def test_rows_are_split_in_order_and_leading_axes_stay_whole() -> None:
    placed = data_layout().split(batch(16, 2), axis=1)
    shards = sorted(placed["tokens"].addressable_shards, key=lambda shard: shard.device.id)
    assert [shard.data.shape for shard in shards] == [(2, 2, 3)] * 8
    np.testing.assert_array_equal(shards[3].data, batch(16, 2)["tokens"][:, 6:8])
    assert {shard.data.shape for shard in placed["row_id"].addressable_shards} == {(2, 2)}


def test_sharded_gradient_equals_the_plain_one_and_is_on_every_device() -> None:
    layout = data_layout()
    inner = {"w": jnp.linspace(-1.0, 1.0, 3)}

    def loss(inner: dict[str, jax.Array], rows: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(jnp.tanh(rows["tokens"] @ inner["w"]) * (rows["row_id"] % 5))

    plain = jax.jit(jax.value_and_grad(loss))(inner, batch(16))
    spread = jax.jit(jax.value_and_grad(loss))(layout.replicate(inner), layout.split(batch(16)))
    np.testing.assert_allclose(spread[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(spread[1]["w"], plain[1]["w"], rtol=1e-6)
    assert len(spread[1]["w"].sharding.device_set) == 8
    assert spread[1]["w"].sharding.is_fully_replicated


def test_what_is_split_over_the_mesh_stays_split_and_the_rest_is_copied_to_every_device() -> None:
    layout = data_layout()
    split = jax.device_put(jnp.ones((8, 3)), NamedSharding(layout.mesh, PartitionSpec("data")))
    placed = layout.replicate({"split": split, "whole": np.ones(3), "one": jnp.ones(())})
    shards = {name: {shard.data.shape for shard in x.addressable_shards} for name, x in placed.items()}
    assert shards == {"split": {(1, 3)}, "whole": {(3,)}, "one": {()}}
    assert all(len(x.sharding.device_set) == 8 for x in placed.values())


@pytest.mark.parametrize(("rows", "fitting"), [(30, 6), (7, 7), (12, 6), (1, 1)])
def test_batch_that_does_not_divide_is_refused_with_both_numbers_and_a_remedy(
    rows: int, fitting: int
) -> None:
    with pytest.raises(InputError) as caught:
        data_layout().split(batch(rows))
    message = str(caught.value)
    assert f"{rows} rows" in message
    assert "8 devices" in message
    assert f"a multiple of 8 rows, or {fitting} of the devices" in message
    assert data_layout(jax.devices()[:fitting]).split(batch(rows))["row_id"].shape == (rows,)
