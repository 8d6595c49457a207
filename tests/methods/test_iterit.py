"""IterIT on rows that a table predicts: what is measured, chosen, ordered and trained on, stopped or not."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import Model, TrainingSettings
from bilevel.curate import complexity, measure_rows, pick_diverse, reordered, response_texts, token_terms
from bilevel.data import ArrayRows, EncodedRows, Row
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.methods import IterITSettings, SubsetSettings, fixed_share, iterit, longest_rows, random_rows
from bilevel.methods.selection_report import SECTION
from bilevel.methods.subsets import EXPERIENCE, response_lengths
from bilevel.schedule import RunState, Score, Train, run_schedule
from bilevel.schedule.context import Context, Kept
from tests.schedule.pieces import assert_same, run_in_pieces

WORDS, END, LENGTH = 8, 7, 8
KEPT = Kept()
SAID: list[str] = []


def rows(count: int, seed: int, faulty: int = 0) -> EncodedRows:
    """Asked a word, a row counts on from it, one to three words, then ends; faulty ones count from elsewhere."""
    rng = np.random.default_rng(seed)
    tokens, segments = np.zeros((count, LENGTH), np.int32), np.zeros((count, LENGTH), np.int32)
    mask, named = np.zeros((count, LENGTH), bool), []
    for place in range(count):
        asked, length = int(rng.integers(0, 6)), int(rng.integers(1, 4))
        said = [(asked + 1 + step + 3 * (place < faulty)) % 6 for step in range(length)]
        line = [asked, 6, *said, END]
        tokens[place, : len(line)], segments[place, : len(line)], mask[place, 2 : len(line)] = line, 1, True
        fault = {"fault": "wrong" if place < faulty else ""}
        named.append(Row(f"toy:{place + 1}", f"w{asked}", "", " ".join(f"w{word}" for word in said), fault))
    return EncodedRows(tuple(named), tokens, segments, mask)


POOL = rows(64, 0, faulty=12)
DATA = {"pool": POOL, "validation": rows(16, 1), "test": rows(16, 2)}


def logits(params, tokens):
    return params["after"][tokens] + params["of"][tokens[:, :1]]


def parameters():
    """A model that half knows what follows: complexities that differ and are mostly below 1."""
    key = jax.random.key(0)
    after = 0.3 * jax.random.normal(key, (WORDS, WORDS))
    following = jnp.eye(WORDS)[(jnp.arange(WORDS) + 1) % 6]
    return {"after": after, "of": 0.7 * following}


MODEL = Model.from_logits(logits, parameters(), SimpleNamespace(bos_token_id=None, eos_token_id=END))
TRAINING = TrainingSettings(batch_rows=8, upper_rows=8, learning_rate=0.5)
SETTINGS = IterITSettings(share=0.2, epochs=3, pool_factor=2.0, ngrams="tokens")
COUNT = 12  # of 64 rows


def run(method, devices: int = 1, seed: int = 0, **options) -> RunState:
    layout = data_layout(jax.devices()[:devices])
    params = layout.replicate(MODEL.params)
    state = RunState(models={"base": params, "current": params}, data=DATA)
    options = {"evaluation_rows": 16, "kept": KEPT if devices == 1 else Kept()} | options
    return run_schedule(method.schedule, state, Context(MODEL, layout, seed, **options))


def choosing(**changes) -> RunState:
    """What is chosen under these settings by a model that stays as it is."""
    method = iterit(MODEL, DATA, training=TRAINING, settings=replace(SETTINGS, **changes))
    rounds = (
        each._replace(moves=tuple(m for m in each.moves if not isinstance(m, Train)))
        for each in method.schedule
    )
    return run(replace(method, schedule=tuple(rounds)), warn=SAID.append)


def with_signals(schedule, folder):
    """A schedule of the same moves, whose measures are kept in a folder."""

    def kept(move):
        return replace(move, folder=folder) if isinstance(move, Score) else move

    return tuple(each._replace(moves=tuple(map(kept, each.moves))) for each in schedule)


def changed(**changes) -> IterITSettings:
    return replace(SETTINGS, **changes)


METHOD = iterit(MODEL, DATA, training=TRAINING, settings=SETTINGS)


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


OFTEN = {"model": MODEL, "log_every": 1, "evaluation_rows": 16, "kept": KEPT}


def columns(state: RunState, upto: int) -> np.ndarray:
    """The ratio of every row as last measured by an epoch."""
    found = state.column("complexity_1").astype(np.float64)
    for epoch in range(2, upto + 1):
        now = state.column(f"complexity_{epoch}")
        found = np.where(np.isnan(now), found, now)
    return found


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
    np.testing.assert_allclose(state.column("complexity_1"), first[""], rtol=1e-6)


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
    for number, stops in enumerate(([1, 2, 3, 4, 5], [2, 3], [3, 1], [4, 1], [5, 6], [0, 7], [1, 5, 2])):
        again, lines, at = run_in_pieces(
            tmp_path / str(number), METHOD.schedule, start, 12 * stops, in_memory=True, **OFTEN
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


def test_the_baseline_measures_and_chooses_once(whole):
    state, _, _ = whole
    method = iterit(MODEL, DATA, training=TRAINING, settings=changed(mode="baseline"))
    assert method.lower_steps == METHOD.lower_steps
    once = choosing(mode="baseline")
    assert sorted(once.signals) == [
        "complexity_1",
        "complexity_1_conditional",
        "complexity_1_unconditional",
        "weight",
    ]
    assert once.rows("chosen_1").tolist() == state.rows("chosen_1").tolist()
    assert sorted(set(once.column("weight").tolist())) == pytest.approx([0, 64 / 12])


def test_a_pool_factor_of_one_measures_all_rows_in_every_epoch():
    state = choosing(pool_factor=1.0, epochs=2)
    assert not np.isnan(state.column("complexity_2")).any()
    large = choosing(pool_factor=50.0, epochs=2)
    assert not np.isnan(large.column("complexity_2")).any()


def test_the_authors_order_looks_at_the_same_rows_for_ever():
    state = choosing(order="author")
    second, third = (~np.isnan(state.column(f"complexity_{epoch}")) for epoch in (2, 3))
    np.testing.assert_array_equal(second, third)
    ratios, chosen = state.column("complexity_1"), state.rows("chosen_1")
    left = np.setdiff1d(np.arange(64), chosen)
    too_hard = left[ratios[left] >= 1]
    below = left[ratios[left] < 1]
    expected = [*chosen, *too_hard, *below[np.argsort(-ratios[below], kind="stable")]][:24]
    assert sorted(expected) == np.flatnonzero(second).tolist()


def test_complexity_alone_takes_the_hardest_rows():
    state = choosing(score="complexity", epochs=1)
    ratios = state.column("complexity_1").astype(np.float64)
    able = np.flatnonzero(ratios < 1)
    assert state.rows("chosen_1").tolist() == able[np.argsort(-ratios[able], kind="stable")][:12].tolist()


def test_ngrams_that_were_used_up_stay_so_if_they_are_carried():
    carried = choosing(carry=True, epochs=2)
    ratios = columns(carried, 2)
    able = np.flatnonzero(carried.column("complexity_2") < 1)
    terms = token_terms(*response_texts(POOL, able, "tokens"))
    used = terms.occurs(response_texts(POOL, carried.rows("chosen_1"), "tokens"))
    expected = able[pick_diverse(ratios[able], terms.matrix, COUNT, 0.1, 0.1**used).ids]
    assert carried.rows("chosen_2").tolist() == expected.tolist()


def test_too_few_rows_below_the_limit_and_ngrams_used_up_are_told():
    ratios = choosing(epochs=1).column("complexity_1")
    limit = float(np.sort(ratios)[5])
    del SAID[:]
    state = choosing(epochs=1, limit=limit)
    assert len(state.rows("chosen_1")) == 5
    assert [f"epoch 1: 5 of 64 rows have a ratio below {limit:g}: fewer than 12 were taken"] == SAID
    del SAID[:]
    state = choosing(epochs=1, decay=0.0, share=0.5)
    assert len(set(state.rows("chosen_1").tolist())) == 32
    assert len(SAID) == 1
    assert "epoch 1: all n-grams were used up after" in SAID[0]
    with pytest.raises(InputError, match="none of 64 rows has a complexity ratio below 1e-06"):
        choosing(limit=1e-6)


def test_experience_comes_before_the_first_choice_under_an_optimizer_of_its_own():
    settings = changed(epochs=1, experience=0.25, experience_steps=3)
    state = run(iterit(MODEL, DATA, training=TRAINING, settings=settings))
    assert len(state.rows(EXPERIENCE)) == 16
    assert state.step == 3 + 2
    counts = [leaf for leaf in jax.tree.leaves(state.solver.inner.optimizer) if leaf.ndim == 0]
    assert {int(count) for count in counts} == {2}
    without = choosing(epochs=1)
    assert not np.allclose(state.column("complexity_1"), without.column("complexity_1"))


def test_controls_choose_by_length_and_by_chance():
    longest = fixed_share(MODEL, DATA, training=TRAINING, rule=longest_rows, settings=SETTINGS)
    state = run(longest)
    lengths = response_lengths(POOL)
    assert state.rows("chosen").tolist() == np.argsort(-lengths, kind="stable")[:12].tolist()
    assert state.step == longest.lower_steps == 6
    chance = fixed_share(
        MODEL, DATA, training=TRAINING, rule=random_rows, settings=replace(SETTINGS, epochs=1)
    )
    one, other, again = (run(chance, seed=seed).rows("chosen").tolist() for seed in (0, 1, 0))
    assert one == again != other
    assert len(set(one)) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, r"share must be in \(0, 1\], not 0.0"),
        ({"share": 1.5}, r"share must be in \(0, 1\], not 1.5"),
        ({"epochs": 0}, "epochs must be 1 or more, not 0"),
        ({"pool_factor": 0.5}, "pool_factor must be 1 or more, not 0.5"),
        ({"decay": 1.1}, r"decay must be in \[0, 1\], not 1.1"),
        ({"limit": 0.0}, "limit must be positive, not 0.0"),
        ({"longest_ngram": 0}, "longest_ngram must be 1 or more, not 0"),
        ({"experience": 0.5}, "give both, or neither"),
        ({"experience": 1.5, "experience_steps": 1}, r"experience must be in \[0, 1\], not 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        IterITSettings(**given)


def test_rows_that_cannot_be_chosen_from_are_refused_before_anything_runs():
    with pytest.raises(InputError, match=r"a share of 0\.01 of 64 rows is not one row"):
        iterit(MODEL, DATA, training=TRAINING, settings=changed(share=0.01))
    arrays = {name: ArrayRows({"x": np.ones(16)}) for name in DATA}
    with pytest.raises(InputError, match="complexity is measured of rows of tokens alone"):
        run_schedule(
            iterit(MODEL, arrays, training=TRAINING, settings=SETTINGS).schedule,
            RunState(models={"base": MODEL.params, "current": MODEL.params}, data=arrays),
            Context(MODEL, data_layout(jax.devices()[:1])),
        )
    assert SubsetSettings(share=0.29).budget(100) == 29
