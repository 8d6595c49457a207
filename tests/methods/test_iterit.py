"""IterIT on rows that a table predicts: what is measured, chosen and trained on, stopped or not."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest

from bilevel.curate import complexity, measure_rows, pick_diverse, reordered, response_texts, token_terms
from bilevel.layout import data_layout
from bilevel.methods.selection_report import SECTION
from bilevel.methods.subsets import response_lengths
from bilevel.schedule import RunState
from tests.methods.iterit_toy import COUNT, DATA, METHOD, MODEL, OFTEN, POOL, columns, run, with_signals
from tests.schedule.pieces import assert_same, run_in_pieces


@pytest.fixture(scope="module")
def shown() -> list:
    return []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shown):
    layout = data_layout(jax.devices()[:1])
    params = layout.replicate(MODEL.params)
    start = RunState(models={"base": params, "current": params}, data=DATA)
    state, lines, _ = run_in_pieces(
        tmp_path_factory.mktemp("whole"), METHOD.schedule, start, **OFTEN, show=shown.append
    )
    return state, lines, start


def test_every_epoch_chooses_as_the_paper_says(whole):
    """The algorithm in plain steps, from the ratios that were measured."""
    state, _, _ = whole
    order, candidates = np.arange(64), np.arange(64)
    for epoch in (1, 2, 3):
        now = state.column(f"complexity_{epoch}")
        assert np.flatnonzero(~np.isnan(now)).tolist() == sorted(candidates.tolist())
        ratios = columns(state, epoch)
        able = np.sort(candidates[ratios[candidates] < 1])
        terms = token_terms(*response_texts(POOL, able, "tokens"))
        expected = able[pick_diverse(ratios[able], terms.matrix, COUNT, 0.1).ids]
        chosen = state.rows(f"chosen_{epoch}")
        assert chosen.tolist() == expected.tolist()
        assert len(set(chosen.tolist())) == COUNT
        order = reordered(order, chosen, ratios, len(candidates))
        candidates = order[: 2 * COUNT]
    assert not np.array_equal(state.rows("chosen_1"), state.rows("chosen_2"))
    first = measure_rows(complexity(), MODEL, POOL, layout=data_layout(jax.devices()[:1]), batch_rows=16)
    np.testing.assert_allclose(state.column("complexity_1"), first[""], rtol=1e-5)


def test_one_optimizer_and_one_learning_rate_run_through_all_epochs(whole):
    state, lines, _ = whole
    steps = 3 * 2  # two batches of eight rows hold twelve
    assert state.step == METHOD.lower_steps == steps
    counts = [leaf for leaf in jax.tree.leaves(state.solver.inner.optimizer) if leaf.ndim == 0]
    assert {int(count) for count in counts} == {steps}
    assert [step for step, found in lines if "lower_loss" in found] == list(range(1, steps + 1))


def test_a_row_weighs_as_often_as_it_was_trained_on(whole):
    state, _, _ = whole
    used = np.bincount(np.concatenate([state.rows(f"chosen_{epoch}") for epoch in (1, 2, 3)]), minlength=64)
    np.testing.assert_allclose(state.column("weight"), used * 64 / 36, rtol=1e-6)


def test_the_report_says_what_each_epoch_chose(whole, shown):
    state, _, _ = whole
    section = shown[-1]
    assert section.title == SECTION
    json.dumps(asdict(section), allow_nan=False)
    lines = {line[0]: line[1:] for line in section.tables[0].lines}
    chosen = [state.rows(f"chosen_{epoch}") for epoch in (1, 2, 3)]
    assert lines["rows measured"] == [64, 24, 24]
    assert lines["rows chosen"] == [12, 12, 12]
    assert lines["of them chosen in the epoch before"] == [
        None,
        *(np.mean(np.isin(now, before)) for before, now in itertools.pairwise(chosen)),
    ]
    first, second = state.column("complexity_1"), state.column("complexity_2")
    pool = np.flatnonzero(~np.isnan(second))
    drift = np.mean(second[pool] - first[pool])
    assert lines["mean change of the ratio since it was last measured"][1] == pytest.approx(drift, rel=1e-5)
    hardest = [
        sorted(pool[values[pool] < 1], key=lambda row: (-values[row], row))[:12] for values in (first, second)
    ]
    new = np.mean([row not in hardest[0] for row in hardest[1]])
    assert lines["share of the hardest that were not hard at the start"][1] == pytest.approx(new)
    assert f"{new:.0%} of the hardest" in section.text
    lengths = response_lengths(POOL)
    assert lines["response tokens of a chosen row"] == [pytest.approx(lengths[ids].mean()) for ids in chosen]
    assert lines["response tokens of any row"] == [pytest.approx(lengths.mean())] * 3
    by_label = {table.title: {line[0]: line[1:] for line in table.lines} for table in section.tables[1:]}
    assert by_label["Mean ratio by label"]["wrong"][0] == pytest.approx(first[:12].mean(), rel=1e-5)
    assert by_label["Share of the chosen by label"]["wrong"][0] == np.mean(chosen[0] < 12)
    shares = [y for _, y in section.charts[0].series["epoch 1"]]
    assert sum(shares) == pytest.approx(1)


def test_a_run_that_is_stopped_everywhere_ends_as_the_one_that_was_not(whole, tmp_path):
    expected, expected_lines, start = whole
    stopped = []
    for number, stops in enumerate((60 * [1], 40 * [2], 30 * [3], 12 * [1, 2, 3, 4, 5], 8 * [0, 7, 1])):
        again, lines, at = run_in_pieces(
            tmp_path / str(number), METHOD.schedule, start, stops, in_memory=True, **OFTEN
        )
        assert_same(again, expected)
        assert lines == expected_lines
        stopped += at
    # Of the first epoch's moves: order, candidates, measure, choose, watch, order, candidates, train.
    assert {at.move for at in stopped if at.round == 0} == set(range(1, 8))
    assert {at.move for at in stopped if at.round == 1} == set(range(6))
    assert any(at.round == 0 and at.move == 2 and at.pending for at in stopped)
    assert any(at.round == 1 and at.move == 5 and at.steps for at in stopped)


def test_what_was_measured_is_in_the_folder_and_is_not_measured_again(whole, tmp_path):
    expected, _, start = whole
    kept = replace(METHOD, schedule=with_signals(METHOD.schedule, tmp_path / "signals"))
    state, _, stopped = run_in_pieces(tmp_path, kept.schedule, start, [8, 9, 9], in_memory=True, **OFTEN)
    assert len(stopped) >= 2
    assert_same(state, expected)
    before = {file: file.read_bytes() for file in (tmp_path / "signals").iterdir()}
    assert len(before) == 3  # a file for each model that measured
    again, _, _ = run_in_pieces(tmp_path / "again", kept.schedule, start, in_memory=True, **OFTEN)
    assert {file: file.read_bytes() for file in (tmp_path / "signals").iterdir()} == before
    assert_same(again, expected)


def test_eight_devices_choose_the_rows_of_one_and_two_runs_agree(whole):
    state, _, _ = whole
    shared = run(METHOD, devices=8)
    for epoch in (1, 2, 3):
        assert shared.rows(f"chosen_{epoch}").tolist() == state.rows(f"chosen_{epoch}").tolist()
    assert shared.step == state.step
    again = run(METHOD)
    assert again.rows("chosen_3").tolist() == state.rows("chosen_3").tolist()
    np.testing.assert_array_equal(again.models["current"]["after"], state.models["current"]["after"])
