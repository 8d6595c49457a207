"""Systems that weigh rows in several ways, each in a few lines: what they need of weightings and solvers."""

from __future__ import annotations

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bilevel.core import RowProblem, alternating, identity, implicit, penalty
from bilevel.core.problem import Seen, Weighting
from bilevel.data import EncodedRows
from bilevel.schedule import (
    Change,
    Changed,
    Round,
    Steps,
    Train,
    Weigh,
    run_schedule,
)
from bilevel.weighting import by_part, exponentiated_gradient, loss_scorer, network, product, row_logits
from tests.schedule.toy import PLAN, UPPER, VOCABULARY, context, encoded, row_losses, start

# A weighting with a running table of row losses, whose table follows when rows change.


def remembered(temperature: float) -> Weighting:
    """softmax(-l / tau) over the last loss that was seen of each row, under the copy that the pool alone moves."""

    def init(key, sizes):
        rows = sizes["row_id"]
        return {"log_temperature": jnp.log(temperature)}, {
            "loss": jnp.zeros(rows),
            "age": jnp.full(rows, -1, jnp.int32),
        }

    def weights(outer, memory, batch, losses):
        table = memory["loss"].size * jax.nn.softmax(-memory["loss"] / jnp.exp(outer["log_temperature"]))
        return jnp.where(batch["row_id"] >= 0, table[batch["row_id"]], 0.0)

    def update(memory, seen: Seen):
        ids = jnp.where(seen.batch["row_id"] >= 0, seen.batch["row_id"], memory["loss"].size)
        older = jnp.where(memory["age"] >= 0, memory["age"] + 1, -1)
        return {
            "loss": memory["loss"].at[ids].set(seen.value_losses.means, mode="drop"),
            "age": older.at[ids].set(0, mode="drop"),
        }

    return Weighting(init, weights, update, tables=("", "row_id"))


def test_a_table_of_row_losses_follows_its_rows():
    problem = RowProblem(row_losses, remembered(2.0), UPPER)
    solver = penalty(problem, optax.sgd(0.5), optax.sgd(0.1), optax.constant_schedule(0.5))
    train = Train(problem, solver, Steps(3), PLAN)
    ids = [np.ravel(train.batches(start(), context())[0].at(step)["row_id"]) for step in range(3)]
    state = run_schedule((Round((train,)),), start(), context())
    memory = jax.device_get(state.solver.memory)
    age = np.full(60, -1)
    for step, seen in enumerate(ids):
        age[seen] = 2 - step
    np.testing.assert_array_equal(memory["age"], age)
    np.testing.assert_allclose(
        memory["loss"][age == 2], np.log(VOCABULARY), rtol=1e-5
    )  # the first step's model
    assert np.all(memory["loss"][age == -1] == 0)
    assert state.solver.outer.inner["log_temperature"] != np.log(2.0)

    came_from = np.array([*range(59, 20, -1), -1, 3])
    kept = replace(
        encoded(41, 9),
        rows=tuple(replace(row, id=f"b:{place}") for place, row in enumerate(encoded(41, 9).rows)),
    )
    state = run_schedule((Round((Change(lambda *_: Changed(kept, came_from)),)),), state, context())
    after = jax.device_get(state.solver.memory)
    for name, fresh in (("age", -1), ("loss", 0.0)):
        np.testing.assert_array_equal(after[name], np.where(came_from < 0, fresh, memory[name][came_from]))
    again = run_schedule((Round((replace(train, length=Steps(1)),)),), state, context())
    older = np.where(after["age"] >= 0, after["age"] + 1, -1)
    np.testing.assert_array_equal(
        np.asarray(again.solver.memory["age"]) == older, again.solver.memory["age"] != 0
    )


# Two answers a question, a weight for the question and one for the answer.

QUESTIONS = 30


def answers() -> EncodedRows:
    """Of each question one answer is right and one wrong; of the last ten questions both are wrong."""
    rows = encoded(2 * QUESTIONS, 0)
    question = np.repeat(np.arange(QUESTIONS), 2)
    tokens = rows.tokens.copy()
    tokens[:, 0] = question % VOCABULARY
    wrong = (np.arange(2 * QUESTIONS) % 2 == 1) | (question >= 20)
    tokens[:, 2] = (tokens[:, 0] + np.where(wrong, 3, 1)) % VOCABULARY
    return replace(rows, tokens=tokens, columns={"question_id": question})


def test_a_question_and_its_answers_have_a_weight_each():
    parts = product(question=row_logits(by="question_id"), answer=row_logits())
    rules = by_part(
        question=exponentiated_gradient(0.3, by="question_id"), answer=exponentiated_gradient(0.3)
    )
    problem = RowProblem(row_losses, parts, UPPER)
    solver = penalty(
        problem, optax.adam(0.1), rules, optax.constant_schedule(0.5), copies=1, scale_outer=False
    )
    plan = replace(PLAN, together="question_id")
    logged = []
    state = run_schedule(
        (Round((Train(problem, solver, Steps(30), plan), Weigh(parts))),),
        start(pool=answers()),
        context(log=lambda step, numbers: logged.append(numbers)),
    )
    question, answer = (jax.nn.softmax(state.solver.outer.inner[name]) for name in ("question", "answer"))
    assert (question.shape, answer.shape) == ((QUESTIONS,), (2 * QUESTIONS,))
    pairs = np.asarray(answer).reshape(-1, 2)
    assert np.all(pairs[:20, 0] > pairs[:20, 1])  # the right answer of a question
    assert np.mean(pairs[:20, 0]) > 2 * np.mean(pairs[:20, 1])
    assert np.mean(question[:20]) > 1.4 * np.mean(question[20:])  # questions with a right answer
    both = 2 * QUESTIONS * QUESTIONS * np.asarray(answer) * np.repeat(question, 2)
    np.testing.assert_allclose(state.column("weight"), both, rtol=1e-4)
    assert {"effective_sample_size/question", "hypergradient_norm/answer"} <= set(logged[-1])


# Three outer parts with two rules in one step, each frozen alone.

PARTS = {
    "rows": row_logits(),
    "questions": row_logits(by="question_id"),
    "network": network(loss_scorer(hidden=4)),
}
RULES = {
    "rows": exponentiated_gradient(0.3),
    "questions": exponentiated_gradient(0.3, by="question_id"),
    "network": optax.adamw(0.01),
}
ONE_STEP = implicit(identity(1.0))


def joint(*names: str):
    problem = RowProblem(row_losses, product(**{name: PARTS[name] for name in names}), UPPER)
    rules = by_part(**{name: RULES[name] for name in names})
    return problem, alternating(problem, optax.adam(0.1), rules, ONE_STEP)


JOINT = joint(*PARTS)


def trained(problem, solver, *updates: str):
    move = Train(problem, solver, Steps(3), PLAN, updates)
    return run_schedule((Round((move,)),), start(pool=answers()), context())


@pytest.mark.parametrize("moving", [("rows",), ("questions", "network")], ids=str)
def test_each_of_three_parts_can_be_frozen_alone(moving):
    begun = jax.device_get(JOINT[1].init(jax.random.key(0), start().models["base"], answers().sizes).outer)
    outer = trained(*JOINT, "inner", *(f"outer.{name}" for name in moving)).solver.outer
    begun_network = JOINT[1].init(
        jax.random.fold_in(jax.random.key(0), 0), start().models["base"], answers().sizes
    )
    begun = begun._replace(
        inner={**begun.inner, "network": jax.device_get(begun_network.outer.inner["network"])}
    )
    for name in PARTS:
        if name in moving:
            assert any(
                np.any(one != other)
                for one, other in zip(
                    jax.tree.leaves(begun.inner[name]), jax.tree.leaves(outer.inner[name]), strict=True
                )
            )
        else:
            chex.assert_trees_all_equal(outer.inner[name], begun.inner[name])
            chex.assert_trees_all_equal(outer.optimizer[name], begun.optimizer[name])


def test_with_two_parts_off_the_third_is_alone():
    """A softmax of equal logits gives weights of one up to rounding; all else is the same, the keys too."""
    both = trained(*JOINT, "inner", "outer.network"), trained(*joint("network"), "inner", "outer")
    chex.assert_trees_all_close(
        *(state.solver.outer.inner["network"] for state in both), rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_close(*(state.models["current"] for state in both), rtol=1e-5, atol=1e-6)
