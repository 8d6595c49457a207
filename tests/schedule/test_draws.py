"""Which rows come next, and where a run's cursors stand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, frozen, identity, implicit
from bilevel.data import EncodedRows, Units
from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.methods import DWMSettings, TrainingSettings, dwm, uniform_tuning
from bilevel.schedule import BatchPlan, Choose, Passes, Round, Steps, Train, moves_of, repeat, run_schedule
from bilevel.schedule.batches import lower_batches
from bilevel.schedule.draws import Draws
from bilevel.weighting import EncoderSettings
from tests.schedule.toy import (
    MODEL,
    PLAN,
    UPPER,
    VOCABULARY,
    context,
    counting,
    data,
    encoded,
    row_losses,
    start,
)

PROBLEM = RowProblem(row_losses, counting(), UPPER)
SOLVER = frozen(PROBLEM, optax.sgd(0.1))


def train(length, plan=PLAN, **options) -> Train:
    return Train(PROBLEM, SOLVER, length, plan, ("inner",), **options)


def visits(*moves, state=None) -> np.ndarray:
    return np.asarray(run_schedule((Round(moves),), state or start(), context()).solver.memory)


def test_plans_of_other_lower_steps_share_one_order():
    """Fifteen batches of sixteen are four passes over sixty rows, however many a step takes."""
    seen = visits(train(Steps(3)), train(Steps(3), replace(PLAN, lower_steps=3)), train(Steps(3)))
    assert Counter(seen.tolist()) == {4: 60}


def test_batches_of_other_sizes_share_one_order():
    assert Counter(visits(train(Steps(3), BatchPlan(12, 8)), train(Steps(3), BatchPlan(8, 8))).tolist()) == {
        1: 60
    }


def test_a_pass_sees_every_row_once_and_the_next_begins_anew():
    hundred = start(pool=encoded(100, 0))
    plan = BatchPlan(32, 8)
    state = run_schedule((Round((train(Passes(1), plan),)),), hundred, context())
    assert Counter(np.asarray(state.solver.memory).tolist()) == {1: 100}
    assert state.step == 4
    state = run_schedule((Round((train(Passes(2), plan),)),), state, context())
    assert Counter(np.asarray(state.solver.memory).tolist()) == {3: 100}


def test_half_a_pass_ends_where_the_next_whole_one_begins():
    """After half a pass, whole passes still are whole: what was left of the first is not made up for."""
    seen = visits(train(Passes(0.5), BatchPlan(15, 8)), train(Passes(1), BatchPlan(15, 8)))
    assert Counter(seen.tolist()) == {1: 30, 2: 30}


@pytest.mark.parametrize("length", [Steps(3), Passes(3)], ids=str)
def test_a_set_smaller_than_a_batch_is_filled_up_and_trains(length):
    state = start().with_set("few", np.array([50, 7, 30]))
    seen = visits(train(length, rows="few"), state=state)
    assert {row: int(count) for row, count in enumerate(seen) if count} == {7: 3, 30: 3, 50: 3}


def test_a_batch_larger_than_all_rows_is_refused_and_so_is_an_empty_set():
    with pytest.raises(InputError, match=r"batch size 64 is larger than the data \(60 rows\)"):
        visits(train(Steps(1), BatchPlan(64, 8)))
    with pytest.raises(InputError, match="set that training is restricted to is empty"):
        visits(train(Steps(1), rows="none"), state=start().with_set("none", np.array([], np.int64)))


def drawn(number: int, ids: np.ndarray, cursors: dict[str, int]) -> list[int]:
    found = lower_batches(
        data()["pool"], ids, PLAN, 0, data_layout(jax.devices()[:1]), start=lambda key: cursors.get(key, 0)
    )
    return np.ravel(found.at(number)["row_id"]).tolist()


def test_the_same_set_goes_on_and_another_one_begins_anew():
    chosen, other = np.arange(40), np.arange(1, 41)
    pick = [Choose(lambda choice, ids=ids: ids, into="chosen") for ids in (chosen, chosen, other)]
    state, cursors = start(), []
    for choose in pick:
        cursors.append(dict(state.drawn))
        state = run_schedule((Round((choose, train(Steps(1), rows="chosen"))),), state, context())
    first, second = drawn(0, chosen, cursors[0]), drawn(0, chosen, cursors[1])
    assert not set(first) & set(second)
    assert second == drawn(1, chosen, {})
    assert drawn(0, other, cursors[2]) == drawn(0, other, {})
    seen = np.asarray(state.solver.memory)
    assert Counter(np.flatnonzero(seen).tolist()) == Counter({*first, *second, *drawn(0, other, {})})


def test_virtual_steps_leave_the_batches_of_the_model_alone():
    """Rows that steps of the outer level alone look at come from a stream of their own."""
    solver = alternating(PROBLEM, optax.sgd(0.1), optax.identity(), implicit(identity(1.0)))
    model = Train(PROBLEM, solver, Steps(1), PLAN, ("inner",))
    look = Train(PROBLEM, solver, Steps(2), PLAN, ("outer",))

    def batches(*moves) -> list[list[int]]:
        state, found = start(), []
        for move in moves:
            if "inner" in move.updates:
                found.append(np.ravel(move.batches(state, context())[0].at(0)["row_id"]).tolist())
            state = run_schedule((Round((move,)),), state, context())
        return found

    assert batches(model, look, model, look, look, model) == batches(model, model, model)


def test_dwm_trains_its_model_on_the_batches_of_its_uniform_baseline():
    training = TrainingSettings(steps=6, batch_rows=16, upper_rows=8)
    settings = DWMSettings(
        encoder=EncoderSettings(8, 1, 2, 8), stages=3, hypergradient_steps=2, unroll_steps=3
    )
    found = []
    for method in (
        uniform_tuning(MODEL, data(), training=training),
        dwm(MODEL, data(), training=training, settings=settings, vocab_size=VOCABULARY + 1),
        dwm(
            MODEL, data(), training=training, settings=replace(settings, hypergradient="unroll"), vocab_size=7
        ),
    ):
        state, ids = start(), []
        for move in (move for move in moves_of(method.schedule) if isinstance(move, Train)):
            lower, _ = move.batches(state, context())
            if "inner" in move.updates:
                ids += [np.ravel(lower.at(step)["row_id"]).tolist() for step in range(move.length.count)]
            state = replace(state, drawn={**state.drawn, lower.key: lower.cursor(move.length.count)})
        found.append(ids)
    assert len(found[0]) == 6
    assert found[0] == found[1] == found[2]


def answers(questions: int, each: int) -> EncodedRows:
    rows = encoded(questions * each, 0)
    return replace(rows, columns={"question_id": np.arange(questions * each) % questions})


def test_what_belongs_together_stands_in_one_batch():
    rows = answers(20, 2)
    found = lower_batches(
        rows, None, BatchPlan(8, 8, together="question_id"), 0, data_layout(jax.devices()[:1])
    )
    questions = [np.ravel(found.at(step)["question_id"]) for step in range(5)]
    assert all(Counter(batch.tolist()).most_common()[-1][1] == 2 for batch in questions)
    assert Counter(np.concatenate(questions).tolist()) == dict.fromkeys(range(20), 2)
    with pytest.raises(InputError, match="a batch of 9 rows cannot hold whole groups of 2"):
        lower_batches(rows, None, BatchPlan(9, 8, together="question_id"), 0, data_layout(jax.devices()[:1]))
    with pytest.raises(InputError, match="rows have no source_id"):
        lower_batches(rows, None, BatchPlan(8, 8, together="source_id"), 0, data_layout(jax.devices()[:1]))


@pytest.mark.parametrize("by_passes", [False, True])
@pytest.mark.parametrize("units", [5, 8, 20])
@pytest.mark.parametrize("start_at", [0, 3])
def test_a_cursor_says_how_the_draws_go_on(by_passes, units, start_at):
    draws = Draws(Units(units), 8, (0, 1), start_at, by_passes)
    a_pass = draws.batches_a_pass
    whole = [draws.ids(number).tolist() for number in range(2 * a_pass)]
    again = replace(draws, start=draws.after(a_pass))
    assert [again.ids(number).tolist() for number in range(a_pass)] == whole[a_pass:]


def test_rounds_of_one_pass_each_are_passes():
    state = run_schedule(repeat(3, (train(Passes(1)),)), start(), context())
    assert Counter(np.asarray(state.solver.memory).tolist()) == {3: 60}
