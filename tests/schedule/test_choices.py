"""Rules that read sets, what rows were used for, and measures that are kept by content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bilevel.schedule import Choose, CountUses, Measure, Passes, Round, Score, run_schedule
from bilevel.schedule.choose import Choice
from tests.schedule.toy import PLAN, context, run, start, train


def test_a_rule_reads_the_sets_that_it_names_and_tells_the_user():
    told: list[str] = []

    def rest(choice: Choice) -> np.ndarray:
        choice.warn(f"{len(choice.sets['first'])} are out")
        return np.setdiff1d(np.arange(len(choice.dataset)), choice.sets["first"])

    some = Choose(lambda choice: np.array([4, 2, 7]), into="first")
    state = run(some, Choose(rest, into="rest", sets=("first",)), warn=told.append)
    assert len(state.rows("rest")) == 57
    assert told == ["3 are out"]
    with pytest.raises(ValueError, match="Choose reads set:first, which nothing before it writes"):
        run(Choose(rest, into="rest", sets=("first",)))


def test_uses_are_counted_over_all_sets():
    moves = (
        Choose(lambda choice: np.array([4, 2]), into="one"),
        Choose(lambda choice: np.array([2, 7]), into="two"),
        CountUses(("one", "two", "two"), into="weight"),
    )
    weight = run(*moves).column("weight")
    assert {row: weight[row] for row in np.flatnonzero(weight)} == {2: 30.0, 4: 10.0, 7: 20.0}
    assert weight.mean() == pytest.approx(1.0)


def test_passes_over_rows_that_are_known_in_advance_are_planned():
    assert Passes(2, expected=40).steps(3, 1) == 6
    assert train().planned_lower_steps == 10
    assert replace(train(), length=Passes(2, expected=40)).planned_lower_steps == 6  # 16 rows a batch
    assert (
        replace(train(), length=Passes(2, expected=40), plan=replace(PLAN, lower_steps=2)).planned_lower_steps
        == 6
    )
    assert replace(train(), length=Passes(2)).planned_lower_steps == 0


def test_rows_are_measured_once_by_content_whoever_asks(tmp_path):
    asked: list[list[int]] = []

    def measured(asked_about, ids):
        asked.append(ids.tolist())
        return {"": (ids % 10).astype(np.float32), "_twice": (2 * (ids % 10)).astype(np.float32)}

    # Rows 0 and 10, 1 and 11 and so on are the same.
    measure = Measure(
        "digit", measured, ("", "_twice"), contents=lambda asked, ids: [f"{row % 10}" for row in ids]
    )
    kept = Score("digit", measure, folder=tmp_path)
    state = run(Choose(lambda choice: np.arange(3, 18), into="some"), replace(kept, rows="some"))
    assert asked == [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]
    assert np.isnan(state.column("digit")[:3]).all()
    np.testing.assert_array_equal(state.column("digit")[3:18], np.arange(3, 18) % 10)
    del asked[:]
    state = run(kept)
    assert not asked
    np.testing.assert_array_equal(state.column("digit_twice"), 2 * (np.arange(60) % 10))
    # Another model is asked anew, and without a folder everything is.
    other = start()
    other = replace(
        other, models={**other.models, "current": {"table": other.models["current"]["table"] + 1}}
    )
    run_schedule((Round((kept,)),), other, context())
    assert asked == [list(range(10))]
    del asked[:]
    run(replace(kept, folder=None))
    assert [len(ids) for ids in asked] == [16, 16, 16, 12]
