"""What the settings of IterIT change, its controls, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest

from bilevel.curate import pick_diverse, response_texts, token_terms
from bilevel.data import ArrayRows
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.methods import IterITSettings, SubsetSettings, fixed_share, iterit, longest_rows, random_rows
from bilevel.methods.subsets import EXPERIENCE, response_lengths
from bilevel.schedule import Choose, Round, RunState, run_schedule
from bilevel.schedule.context import Context
from tests.methods.iterit_toy import (
    COUNT,
    DATA,
    METHOD,
    MODEL,
    POOL,
    SAID,
    SETTINGS,
    TRAINING,
    changed,
    choosing,
    columns,
    run,
)


def test_the_baseline_measures_and_chooses_once():
    state = choosing(epochs=1)
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
    assert state.rows("chosen_1").tolist() == np.argsort(-lengths, kind="stable")[:12].tolist()
    assert state.step == longest.lower_steps == 6
    chance = fixed_share(
        MODEL, DATA, training=TRAINING, rule=random_rows, settings=replace(SETTINGS, epochs=1)
    )
    one, other, again = (run(chance, seed=seed).rows("chosen_1").tolist() for seed in (0, 1, 0))
    assert one == again != other
    assert len(set(one)) == 12
    anew = fixed_share(MODEL, DATA, training=TRAINING, rule=random_rows, settings=SETTINGS, anew=True)
    drawn = [move for each in anew.schedule for move in each.moves if isinstance(move, Choose)]
    assert [move.into for move in drawn] == ["chosen_1", "chosen_2", "chosen_3"]
    sets = run(replace(anew, schedule=tuple(Round((move,)) for move in drawn))).sets
    assert len({row for found in sets.values() for row in found.ids.tolist()}) > 24


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
