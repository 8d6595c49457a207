"""Systems whose rows change from round to round, each in a few lines: what they need of moves and draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, frozen, identity, implicit
from bilevel.data import EncodedRows, Lineage, Row, child_id
from bilevel.schedule import (
    Change,
    Changed,
    Choose,
    Evaluate,
    Keep,
    Passes,
    Score,
    Steps,
    Train,
    Weigh,
    lower,
    repeat,
    run_schedule,
)
from bilevel.schedule.choose import Choice
from bilevel.weighting import exponentiated_gradient
from tests.schedule.pieces import assert_same, run_in_pieces
from tests.schedule.toy import PLAN, UPPER, VOCABULARY, WEIGHED, context, counting, row_losses, start

# A chosen subset that changes its size each round, under one optimizer.

COUNTED = RowProblem(row_losses, counting(), UPPER)
ONE_OPTIMIZER = frozen(COUNTED, optax.adam(0.1))


def lowest(choice: Choice) -> np.ndarray:
    """Half of the rows, then a third, then a quarter: those of the lowest loss."""
    return np.argsort(choice.columns["loss"], kind="stable")[: len(choice.dataset) // (2 + choice.round)]


def test_rounds_train_on_subsets_of_other_sizes_with_one_step_that_is_compiled_once():
    train = Train(COUNTED, ONE_OPTIMIZER, Passes(1), PLAN, ("inner",), rows="chosen")
    moves = (Score("loss"), Choose(lowest, into="chosen", signals=("loss",)), train)
    settings, compilations, expected = context(), [], Counter()
    # Placed as it will be after training, or the first round's scores would come from a program of their own.
    model = settings.layout.replicate(start().models["base"])
    state = replace(start(), models={"base": model, "current": model})
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compilations.append(event) if "backend_compile" in event else None
    )
    for round, steps in enumerate((2, 4, 5)):  # 30, 20 and 15 rows in batches of 16
        del compilations[:]
        state = run_schedule(repeat(1, moves), state, settings)
        assert not round or not compilations
        assert len(state.rows("chosen")) == 60 // (2 + round)
        expected.update(state.rows("chosen").tolist())
        assert +Counter(dict(enumerate(np.asarray(state.solver.memory).tolist()))) == expected
        assert state.step == steps
    assert int(state.solver.inner.optimizer[0].count) == 5


# Rows that are rewritten, added and dropped between rounds, from the base model each time.

FRESH = alternating(WEIGHED, optax.adam(0.3), exponentiated_gradient(0.1), implicit(identity(1.0)))


def refined(state, context) -> Changed:
    """Of every three rows the one of the highest loss is written anew; the last two go, and one is new."""
    rows, loss = state.data["pool"], state.column("loss")
    worst = {3 * number + int(np.argmax(loss[3 * number :][:3])) for number in range(len(rows) // 3)}
    kept = np.arange(len(rows) - 2)
    tokens, made = rows.tokens[np.append(kept, 0)], []
    for place in kept:
        old = rows.rows[place]
        if place in worst:
            tokens[place, 2] = (tokens[place, 0] + 1) % VOCABULARY
            said = Lineage(old.id, state.round, "refiner", {"loss": float(loss[place])})
            old = replace(
                old, id=child_id(old.id, state.round, 1), output=str(tokens[place, 2]), lineage=said
            )
        made.append(old)
    made.append(Row(f"new:{state.round}", "0", "", str(tokens[-1, 2])))
    new = EncodedRows(tuple(made), tokens, np.ones_like(tokens), rows.loss_mask[: len(made)])
    return Changed(new, np.append(kept, -1))


REFINEMENT = repeat(
    5,
    (
        Train(WEIGHED, FRESH, Steps(3), PLAN, start="base"),
        Weigh(WEIGHED.weighting),
        Score("loss"),
        Change(refined, also_reads=("signal:loss",)),
        Evaluate("validation"),
        Keep("best", when=lower("validation")),
    ),
    until=lambda state: state.step >= 9,
)


@pytest.fixture(scope="module")
def refinement(tmp_path_factory):
    return run_in_pieces(tmp_path_factory.mktemp("whole"), REFINEMENT, start(), **OFTEN)


SCORED = 2
OFTEN = {"log_every": 2, "evaluation_rows": 32}


def test_refined_rows_carry_what_is_known_of_them(refinement):
    state, _, _ = refinement
    pool = state.data["pool"]
    assert (len(pool), state.step, state.round) == (57, 9, 5)
    refined_twice = [row for row in pool.rows if row.id.count("~") == 2]
    assert refined_twice
    assert refined_twice[0].lineage.parent.count("~") == 1
    assert [row.id for row in pool.rows[-1:]] == ["new:2"]
    # What was measured follows its row; the new row was not measured.
    assert np.isnan(state.column("loss")[-1])
    assert not np.isnan(state.column("loss")[:-1]).any()
    assert state.signals["weight"].rounds.tolist() == 56 * [2] + [-1]
    assert state.solver.outer.inner.shape == (57,)
    with pytest.raises(ValueError, match="signal 'loss' is about other rows than 'pool' now holds"):
        replace(state, data=start().data).column("loss")


def test_a_refinement_that_is_killed_everywhere_ends_as_the_one_that_was_not(refinement, tmp_path):
    """Attempts get a few questions further each, so that some are stopped at every move and inside of them."""
    expected, expected_lines, _ = refinement
    stopped = []
    # How often a look counts depends on the interpreter: checking a protocol may ask its properties.
    patterns = ([2, 3, 4, 5], [3, 4, 5], [5, 3], [4, 3, 5, 2], [1, 1, 4], [2, 1], [0], [1, 1, 1, 6])
    for number, some in enumerate(patterns):
        stops = 20 * some
        state, lines, at = run_in_pieces(
            tmp_path / str(number), REFINEMENT, start(), stops, in_memory=True, **OFTEN
        )
        assert_same(state, expected)
        assert lines == expected_lines
        stopped += at
    for round in range(3):
        assert {at.move for at in stopped if at.round == round} == set(range(6))
        assert {at.steps for at in stopped if at.round == round and at.move == 0} >= {1, 2}
    assert any(at.move == SCORED and at.pending for at in stopped)


def test_a_refinement_goes_on_from_files(refinement, tmp_path):
    state, lines, stopped = run_in_pieces(tmp_path, REFINEMENT, start(), [9, 24], **OFTEN)
    assert_same(state, refinement[0])
    assert lines == refinement[1]
    assert [at.round for at in stopped] == [0, 2]
