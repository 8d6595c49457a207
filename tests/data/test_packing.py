"""Packed batches, and that a model cannot tell them from padded ones."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from bilevel.data import (
    EncodedRows,
    Order,
    PackedRows,
    Row,
    arrange_rows,
    first_fit_decreasing,
    pack_rows,
)
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.objectives import response_losses

CONFIG = models.DecoderConfig(vocab_size=17, width=16, layers=2, heads=4, kv_heads=2, mlp_width=20)
PARAMS = models.init(CONFIG, jax.random.key(0))
DIRECTION = models.init(CONFIG, jax.random.key(1))
LENGTHS = [5, 12, 3, 7, 4, 9, 2, 6, 3, 3, 11, 4]


def encoded(lengths: list[int] = LENGTHS, width: int = 12) -> EncodedRows:
    rng = np.random.default_rng(0)
    inside = np.arange(width) < np.array(lengths)[:, None]
    return EncodedRows(
        tuple(Row(f"a:{line}", "", "", "") for line in range(len(lengths))),
        np.where(inside, rng.integers(1, 17, inside.shape), 0).astype(np.int32),
        inside.astype(np.int32),
        inside & (np.arange(width) >= (np.array(lengths)[:, None] + 1) // 2),
    )


ROWS = encoded()
row_losses = response_losses(lambda params, batch: models.token_scores(params, batch, CONFIG))


def test_rows_go_longest_first_where_there_is_room() -> None:
    place = first_fit_decreasing(np.array([3, 6, 0, 4, 2, 5]), 8)
    np.testing.assert_array_equal(place.sequence, [1, 0, 0, 2, 0, 1])
    np.testing.assert_array_equal(place.start[[0, 1, 3, 4, 5]], [5, 0, 0, 6, 0])
    assert place.sequences == 3


def test_every_token_of_every_row_is_there_once() -> None:
    packed = pack_rows(ROWS, [range(12)], length=16)
    ids = [3, -1, 0, 1, 7, 2]
    batch, padded = packed.batch(ids), ROWS.batch(ids)
    assert batch["tokens"].shape == (packed.sequence_counts[0], 16)
    np.testing.assert_array_equal(batch["row_id"], ids)
    for row in range(len(ids)):
        for name in ("tokens", "loss_mask"):
            ours = batch[name][batch["token_row"] == row]
            np.testing.assert_array_equal(ours, padded[name][row][padded["segments"][row] > 0])
    np.testing.assert_array_equal(batch["segments"] > 0, batch["token_row"] >= 0)
    # Rows of one sequence are told apart, and none begins with a target.
    for owners, segments, mask in zip(
        *(batch[name] for name in ("token_row", "segments", "loss_mask")), strict=True
    ):
        pairs = {(row, segment) for row, segment in zip(owners, segments, strict=True) if segment}
        assert len(pairs) == len({row for row, _ in pairs}) == len({segment for _, segment in pairs})
        first = np.flatnonzero(np.diff(segments, prepend=0))
        assert not np.any(mask[first])


def test_a_plan_holds_every_batch_of_a_run_at_its_sizes() -> None:
    order = Order(len(ROWS), seed=1)
    batches = [order.take(step * 5, 5) for step in range(30)]
    packed = pack_rows(ROWS, batches, two_sizes=True)
    assert packed.sequence_counts == (3, 4)
    shapes = [packed.batch(batch)["tokens"].shape for batch in batches]
    assert set(shapes) == {(3, 12), (4, 12)}
    assert packed.share == pytest.approx(np.mean([sequences for sequences, _ in shapes]) / 5)
    # Each batch has the smaller size if it fits, and the larger one holds all.
    for batch, (sequences, _) in zip(batches, shapes, strict=True):
        assert (first_fit_decreasing(ROWS.lengths[batch], 12).sequences <= 3) == (sequences == 3)
    assert pack_rows(ROWS, batches).sequence_counts == (4,)
    assert pack_rows(ROWS, batches, multiple=4, two_sizes=True).sequence_counts == (4,)


def evaluate(params: dict, batch: dict) -> tuple:
    """Row losses, gradient of their mean, and row scores along a direction."""

    def means(params: dict) -> jax.Array:
        return row_losses(params, batch).means

    losses, scores = jax.jvp(means, (params,), (DIRECTION,))
    return row_losses(params, batch), losses, jax.grad(lambda p: means(p).mean())(params), scores


@pytest.fixture(scope="module")
def compiled() -> Callable:
    return jax.jit(evaluate)


def test_packed_rows_equal_padded_rows(compiled: Callable) -> None:
    ids = np.array([*range(10), -1, 11])
    padded, packed = ROWS.batch(ids), pack_rows(ROWS, [ids], length=24).batch(ids)
    assert packed["tokens"].size < 0.7 * padded["tokens"].size
    expected = compiled(PARAMS, padded)
    assert expected[0].count[10] == 0
    chex.assert_trees_all_close(compiled(PARAMS, packed), expected, rtol=1e-5, atol=1e-5)


def test_packed_rows_over_devices(compiled: Callable) -> None:
    ids = np.arange(12)
    layout = data_layout(jax.devices()[:4])
    packed = pack_rows(ROWS, [ids], length=24, multiple=4).batch(ids)
    assert packed["tokens"].shape == (4, 24)
    alone = compiled(PARAMS, ROWS.batch(ids))
    shared = compiled(layout.replicate(PARAMS), layout.split(packed))
    chex.assert_trees_all_close(shared, alone, rtol=1e-5, atol=1e-5)


def test_batches_of_one_size_compile_once() -> None:
    chex.clear_trace_counter()
    order = Order(len(ROWS), seed=0)
    packed = pack_rows(ROWS, (order.take(step * 4, 4) for step in range(4)))
    loss = jax.jit(chex.assert_max_traces(n=1)(lambda batch: row_losses(PARAMS, batch).total))
    assert len(packed.sequence_counts) == 1
    results = [loss(packed.batch(order.take(step * 4, 4))) for step in range(4)]
    assert len({float(jnp.sum(total)) for total in results}) == 4


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="a:1: 12 tokens do not fit into packed sequences of 11"):
        pack_rows(ROWS, [range(12)], length=11)
    with pytest.raises(InputError, match="there is no batch to plan packing for"):
        pack_rows(ROWS, [])


def test_an_unlucky_batch_gets_a_sequence_for_each_row() -> None:
    packed = PackedRows(ROWS, 12, (1,))
    assert packed.batch([2, 6, -1])["tokens"].shape == (1, 12)
    ids = np.array([1, 10, 4])
    batch = packed.batch(ids)
    assert batch["tokens"].shape == (3, 12)
    losses = jax.jit(row_losses)
    chex.assert_trees_all_close(losses(PARAMS, batch), losses(PARAMS, ROWS.batch(ids)), rtol=1e-5, atol=1e-5)


def test_leading_axes_are_packed_one_by_one_at_one_shape() -> None:
    ids = np.array([[[0, 2, 6], [1, 10, -1]], [[3, 4, 5], [7, 8, 9]]])
    packed = pack_rows(ROWS, [ids])
    batch = packed.batch(ids)
    assert batch["tokens"].shape == (2, 2, packed.sequence_counts[0], 12)
    for step in range(2):
        for micro in range(2):
            chex.assert_trees_all_equal(
                {name: array[step, micro] for name, array in batch.items()},
                PackedRows(ROWS, 12, packed.sequence_counts).batch(ids[step, micro]),
            )
    # One that does not fit takes all of them along, so that a step has one shape.
    assert PackedRows(ROWS, 12, (1,)).batch(ids)["tokens"].shape == (2, 2, 3, 12)


@pytest.mark.parametrize(
    ("lengths", "packing", "sequences"),
    [([3] * 12, "auto", 3), ([3] * 12, "off", None), ([12] * 12, "auto", None), ([12] * 12, "on", 12)],
)
def test_auto_packs_where_it_saves_tokens(lengths: list[int], packing, sequences: int | None) -> None:
    rows = encoded(lengths)
    found = arrange_rows(rows, np.arange(12)[None], packing)
    if sequences is None:
        assert found is rows
    else:
        assert found.sequence_counts == (sequences,)
        assert found.share == sequences / 12


def test_a_smaller_size_for_most_batches_is_taken_where_it_saves_tokens() -> None:
    rows = encoded([2] * 20 + [12] * 4)
    light, heavy = list(range(8)), [*range(4), *range(20, 24)]
    packed = pack_rows(rows, [light] * 9 + [heavy], two_sizes=True)
    assert packed.sequence_counts == (2, 5)
    assert packed.share == pytest.approx((9 * 2 + 5) / (10 * 8))
    assert packed.batch(light)["tokens"].shape == (2, 12)
    assert packed.batch(heavy)["tokens"].shape == (5, 12)
    # Pieces of one batch share its size.
    assert packed.batch(np.array([light, heavy]))["tokens"].shape == (2, 5, 12)
    both = np.array([[light, heavy]] * 9 + [[light, light]])
    assert pack_rows(rows, both, two_sizes=True).sequence_counts == (5,)
    assert pack_rows(rows, [heavy] * 9 + [light], two_sizes=True).sequence_counts == (5,)
