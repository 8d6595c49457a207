"""Which units come next."""

import itertools

import numpy as np
import pytest

from bilevel.data import Order, Units
from bilevel.errors import InputError


@pytest.mark.parametrize("units", [1, 2, 3, 7, 60, 1024, 1025, 4096, 4097])
def test_each_pass_is_a_permutation_and_no_unit_is_dropped(units: int) -> None:
    passes = Order(units, seed=3).take(0, 3 * units).reshape(3, units)
    for drawn in passes:
        assert sorted(drawn) == list(range(units))


def test_a_draw_in_any_cut_is_the_draw_at_once() -> None:
    order = Order(10, seed=5)
    whole = order.take(0, 95)
    for cuts in ([4] * 23, [1, 9, 30, 0, 11, 44], [95]):
        starts = itertools.accumulate(cuts, initial=0)
        pieces = [order.take(start, cut) for start, cut in zip(starts, cuts, strict=False)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole[: sum(cuts)])
    np.testing.assert_array_equal(Order(10, seed=5).take(40, 7), whole[40:47])
    assert order.take(3, 0).shape == (0,)


def test_epochs_and_seeds_differ() -> None:
    order = Order(50, seed=0)
    first = order.take(0, 50)
    others = [order.take(50, 50), *(Order(50, seed).take(0, 50) for seed in (1, [0, 1], [1, 0], [0, 0]))]
    drawn = {tuple(each) for each in (first, *others)}
    assert len(drawn) == 6
    # They have nothing in common: about one unit stands at the same place in two random permutations.
    for one, other in itertools.combinations(drawn, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 8


def test_the_sequence_is_the_same_in_every_version() -> None:
    assert Order(10, seed=0).take(0, 10).tolist() == [2, 9, 1, 7, 4, 0, 6, 8, 5, 3]
    assert Order(10**6, seed=0).take(0, 4).tolist() == [72854, 6928, 215492, 779366]


@pytest.mark.parametrize("units", [3, 5, 12, 60, 70])
def test_every_place_is_as_likely_for_every_unit(units: int) -> None:
    epochs = 4000
    drawn = Order(units, seed=11).take(0, epochs * units).reshape(epochs, units)
    counts = np.stack([np.bincount(drawn[:, place], minlength=units) for place in range(units)])
    assert normal_deviate(counts, epochs / units, (units - 1) ** 2) < 4


def test_every_order_of_a_few_units_is_as_likely() -> None:
    epochs = 24_000
    drawn = Order(4, seed=2).take(0, 4 * epochs).reshape(epochs, 4)
    counts = np.unique(drawn @ [64, 16, 4, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert normal_deviate(counts, epochs / 24, 23) < 4


@pytest.mark.parametrize("units", [9, 60, 1025, 4096])
def test_neighbours_and_next_epochs_are_independent(units: int) -> None:
    epochs = max(300, 100_000 // units)
    drawn = Order(units, seed=4).take(0, epochs * units).reshape(epochs, units)
    steps = np.bincount((drawn[:, 1:] - drawn[:, :-1]).ravel() % units, minlength=units)[1:]
    assert normal_deviate(steps, epochs, units - 2) < 4
    moved = np.bincount((drawn[1:] - drawn[:-1]).ravel() % units, minlength=units)
    assert normal_deviate(moved, epochs - 1, units - 1) < 4


@pytest.mark.parametrize("units", [1025, 3000])
def test_every_unit_is_as_likely_in_the_first_places(units: int) -> None:
    order = Order(units, seed=6)
    first = np.stack([order.take(epoch * units, 12) for epoch in range(400)])
    # Twelve places of 400 epochs, units in 25 parts of equal size.
    for number in (first, first[:, ::-1].cumsum(axis=1) % units):
        parts = np.bincount((number * 25 // units).ravel(), minlength=25)
        assert normal_deviate(parts, number.size / 25, 24) < 4


def test_first_batches_of_seeds_cover_units_evenly() -> None:
    units, seeds = 37, 4000
    first = np.array([Order(units, seed).take(0, 1)[0] for seed in range(seeds)])
    assert normal_deviate(np.bincount(first, minlength=units), seeds / units, units - 1) < 4


def normal_deviate(counts: np.ndarray, expected: float, freedom: int) -> float:
    """Chi-square of counts, as standard deviations from what chance gives."""
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return abs(float(chi_square - freedom)) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("units", [10**9, 2**40])
def test_many_units_take_no_memory(units: int) -> None:
    order = Order(units, seed=1)
    drawn = order.take(units - 300, 600)
    assert len(set(drawn[:300])) == len(set(drawn[300:])) == 300
    assert (drawn.min() >= 0) & (drawn.max() < units)
    assert abs(drawn.mean() / units - 0.5) < 0.1
    assert order.take(10**6 * units + 7, 3).shape == (3,)


@pytest.mark.parametrize(
    ("units", "seed", "message"),
    [
        (0, 0, "there are no rows to draw from"),
        (3, -1, "seed -1 is negative"),
        (3, (2, -5), "seed -5 is negative"),
    ],
)
def test_impossible_orders_are_refused(units: int, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Order(units, seed)


def test_negative_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="a draw of 2 units from position -1"):
        Order(3, 0).take(-1, 2)


def test_every_row_is_a_unit_where_nobody_says_otherwise() -> None:
    units = Units(np.array([4, 9, 2]))
    assert (len(units), units.width) == (3, 1)
    np.testing.assert_array_equal(units.rows([2, 0]), [[2], [4]])


def test_all_of_many_rows_take_no_memory() -> None:
    units = Units(10**12)
    assert (len(units), units.width) == (10**12, 1)
    np.testing.assert_array_equal(units.rows([10**11, 0]), [[10**11], [0]])


def test_rows_of_a_unit_stay_together() -> None:
    question = np.array([5, 0, 5, 2, 0, 5, -1, -1, 2])
    units = Units(np.array([6, 0, 1, 2, 4, 7]), question)
    assert (len(units), units.width) == (4, 2)
    np.testing.assert_array_equal(units.rows(range(4)), [[6, -1], [0, 2], [1, 4], [7, -1]])
    every = Units(9, question)
    assert sorted(id for id in every.rows(range(len(every))).ravel() if id >= 0) == list(range(9))


def test_sets_without_rows_and_units_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="there are no rows to draw from"):
        Units([])
    with pytest.raises(ValueError, match=r"positions must lie in 0 .. 2, got 0 .. 3"):
        Units(3).rows([0, 3])
