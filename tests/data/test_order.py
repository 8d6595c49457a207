"""Which rows a step draws."""

import numpy as np
import pytest

from bilevel.data import RowOrder
from bilevel.errors import InputError


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (12, 4), (7, 7), (5, 1), (9, 8)])
def test_each_epoch_is_a_permutation_and_no_row_is_dropped(rows: int, batch_size: int) -> None:
    order = RowOrder(rows, batch_size, seed=3)
    drawn = np.concatenate([order.indices(step) for step in range(rows)])
    epochs = drawn.reshape(batch_size, rows)
    for epoch in epochs:
        assert sorted(epoch) == list(range(rows))
    assert all(len(order.indices(step)) == batch_size for step in range(5))


def test_epochs_and_seeds_differ() -> None:
    order = RowOrder(50, 50, seed=0)
    assert not np.array_equal(order.indices(0), order.indices(1))
    assert not np.array_equal(order.indices(0), RowOrder(50, 50, seed=1).indices(0))


def test_a_step_is_a_pure_function_whatever_was_drawn_before() -> None:
    order = RowOrder(10, 4, seed=5)
    forwards = [order.indices(step) for step in range(20)]
    forwards[7][:] = -1
    backwards = [order.indices(step) for step in reversed(range(20))][::-1]
    for step in set(range(20)) - {7}:
        np.testing.assert_array_equal(forwards[step], backwards[step])
    np.testing.assert_array_equal(order.indices(7), RowOrder(10, 4, seed=5).indices(7))


def test_resuming_far_out_costs_no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = np.random.default_rng

    def counting(seed: list[int]) -> np.random.Generator:
        made.append(seed)
        return original(seed)

    monkeypatch.setattr(np.random, "default_rng", counting)
    order = RowOrder(10, 4, seed=5)
    late = order.indices(10**9 + 2)
    assert len(made) <= 2
    for step in range(5):
        order.indices(step)
    assert len(made) <= 2 + 2
    assert set(late) <= set(range(10))


def test_epoch_counts_passes() -> None:
    order = RowOrder(10, 4, seed=0)
    assert [order.epoch(step) for step in (0, 5)] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("rows", "batch_size", "seed", "message"),
    [
        (3, 4, 0, r"batch size 4 is larger than the data \(3 rows\); lower it to at most 3 or add rows"),
        (3, 0, 0, "batch size 0 is not positive"),
        (0, 1, 0, "there are no rows to draw from"),
        (3, 1, -1, "seed -1 is negative"),
    ],
)
def test_impossible_orders_are_refused(rows: int, batch_size: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RowOrder(rows, batch_size, seed)


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="step -1 is negative"):
        RowOrder(3, 1, 0).indices(-1)
