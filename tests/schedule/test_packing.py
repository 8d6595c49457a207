"""Batches of several rows a sequence, in every place where a schedule makes batches."""

from __future__ import annotations

import re

import jax
import numpy as np

from bilevel.layout import data_layout
from bilevel.schedule import BatchPlan, packing_notice
from bilevel.schedule.batches import first_rows, in_turn, lower_batches, upper_batches
from tests.schedule.ragged import POOL, TEST, TRUSTED


def test_batches_are_packed_in_every_place_and_keep_their_row_arrays() -> None:
    layout = data_layout(jax.devices()[:2])
    plan = BatchPlan(32, 32, accumulate=2, lower_steps=3, packing="on")
    sets = [
        (lower_batches(POOL, None, plan, 0, layout).at(5), (3, 2), 16),
        (upper_batches(TRUSTED, plan, 1, layout).at(5), (2,), 16),
        (first_rows(TRUSTED, 20, layout, "on"), (), 20),
        (next(in_turn(TEST, 16, layout, "on"))[1], (), 16),
    ]
    for batch, lead, size in sets:
        sequences = batch["tokens"].shape[-2]
        assert sequences < size
        assert sequences % 2 == 0
        assert batch["row_id"].shape == (*lead, size)
        for name in ("tokens", "segments", "loss_mask", "token_row"):
            assert batch[name].shape == (*lead, sequences, 16)


def test_the_same_rows_stand_in_packed_and_padded_batches() -> None:
    layout = data_layout(jax.devices()[:1])
    plans = [BatchPlan(16, 16, accumulate=2, lower_steps=2, packing=packing) for packing in ("off", "on")]
    padded, packed = (lower_batches(POOL, np.arange(10, 80), plan, 3, layout).at for plan in plans)
    for step in (0, 7):
        np.testing.assert_array_equal(padded(step)["row_id"], packed(step)["row_id"])
        assert padded(step)["tokens"].size > packed(step)["tokens"].size


def test_upper_batches_can_stay_padded() -> None:
    layout = data_layout(jax.devices()[:1])
    plan = BatchPlan(16, 16, packing="on", upper_packing="off")
    assert "token_row" in lower_batches(POOL, None, plan, 0, layout).at(0)
    assert "token_row" not in upper_batches(TRUSTED, plan, 0, layout).at(0)
    notice = packing_notice(POOL, TRUSTED, plan, 0, layout)
    assert re.fullmatch(
        r"packing: lower batches of 16 rows in \d+( or \d+)? sequences \(\d+% of the tokens\), upper batches padded",
        notice,
    )
    assert packing_notice(POOL, TRUSTED, BatchPlan(16, 16), 0, layout) == ""


def test_a_run_sees_the_planned_sizes_alone() -> None:
    layout = data_layout(jax.devices()[:1])
    batches = lower_batches(POOL, None, BatchPlan(16, packing="auto"), 0, layout)
    assert {batches.at(step)["tokens"].shape[2] for step in range(200)} <= set(batches.rows.sequence_counts)
    assert len(batches.rows.sequence_counts) <= 2
