"""A task that a linear model learns in a moment: rows of four tokens whose third token is the answer."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel.core import RowLosses, RowProblem, alternating, frozen, identity, implicit
from bilevel.core.problem import Weighting
from bilevel.data import EncodedRows, Row
from bilevel.layout import data_layout
from bilevel.model import Model
from bilevel.objectives import mean_loss
from bilevel.schedule import BatchPlan, Context, Move, Round, RunState, Steps, Train, run_schedule
from bilevel.schedule.context import Kept
from bilevel.weighting import row_logits, uniform

VOCABULARY = 6
KEPT = Kept()
"""Programs of all contexts on one device, so that tests share what they compile."""


@functools.cache
def encoded(rows: int, seed: int, faulty: int = 0) -> EncodedRows:
    """Rows whose answer is their first token plus one; the first `faulty` rows answer plus three."""
    first = np.random.default_rng(seed).integers(0, VOCABULARY, size=rows)
    answer = (first + np.where(np.arange(rows) < faulty, 3, 1)) % VOCABULARY
    tokens = np.stack([first, np.zeros_like(first), answer, np.full_like(first, VOCABULARY)], axis=1)
    named = tuple(
        Row(f"toy:{i + 1}", str(first[i]), "", str(answer[i]), {"fault": "wrong" if i < faulty else ""})
        for i in range(rows)
    )
    mask = np.zeros((rows, 4), bool)
    mask[:, 2] = True
    return EncodedRows(named, tokens.astype(np.int32), np.ones((rows, 4), np.int32), mask)


def parameters() -> dict:
    return {"table": jnp.zeros((VOCABULARY + 1, VOCABULARY))}


def row_losses(params: dict, batch: dict) -> RowLosses:
    logits = jax.nn.log_softmax(params["table"][batch["tokens"][:, 0]])
    loss = -jnp.take_along_axis(logits, batch["tokens"][:, 2:3], axis=1)[:, 0]
    count = jnp.any(batch["loss_mask"], axis=1).astype(loss.dtype)
    return RowLosses(jnp.where(count > 0, loss, 0.0), count)


def evaluate(params: dict, batch: dict) -> tuple[RowLosses, jax.Array]:
    guess = jnp.argmax(params["table"][batch["tokens"][:, 0]], axis=1)
    return row_losses(params, batch), guess == batch["tokens"][:, 2]


MODEL = Model(row_losses, parameters(), evaluate=evaluate)


def data(seed: int = 0, pool: EncodedRows | None = None) -> dict[str, EncodedRows]:
    return {
        "pool": pool or encoded(60, seed, faulty=24),
        "validation": encoded(16, seed + 100),
        "test": encoded(37, seed + 200),
    }


def start(seed: int = 0, pool: EncodedRows | None = None) -> RunState:
    model = parameters()
    return RunState(models={"base": model, "current": model}, data=data(seed, pool))


def context(seed: int = 0, devices: int = 1, **options) -> Context:
    settings = {"log_every": 10, "evaluation_rows": 16, "kept": KEPT if devices == 1 else Kept()} | options
    return Context(MODEL, data_layout(jax.devices()[:devices]), seed, **settings)


def counting() -> Weighting:
    """Uniform weights whose memory counts how often each row was seen."""

    def weights(outer, memory, batch, losses):
        return jnp.where(batch["row_id"] >= 0, 1.0, 0.0)

    def update(memory, seen):
        ids = jnp.ravel(seen.batch["row_id"])
        return memory.at[jnp.where(ids >= 0, ids, memory.size)].add(1, mode="drop")

    def init(key, sizes):
        return (), jnp.zeros(sizes["row_id"], jnp.int32)

    return Weighting(init, weights, update, tables=("", "row_id"))


UPPER = mean_loss(row_losses)
PLAN = BatchPlan(16, 8)
UNIFORM = RowProblem(row_losses, uniform(), UPPER)
PLAIN = frozen(UNIFORM, optax.adam(0.1))
"""Uniform training, the solver of most tests of moves: one for all, so that its step is compiled once."""
WEIGHED = RowProblem(row_losses, row_logits(), UPPER)
BOTH_LEVELS = alternating(WEIGHED, optax.adam(0.1), optax.sgd(0.1), implicit(identity(1.0)))


def train(steps: int = 10, **options) -> Train:
    return Train(UNIFORM, PLAIN, Steps(steps), PLAN, ("inner",), **options)


def run(*moves: Move, state: RunState | None = None, **options) -> RunState:
    """The state after one round of these moves."""
    return run_schedule((Round(moves),), state or start(), context(**options))


def nothing_may_run(step, numbers):
    """A log that nobody may write to."""
    raise AssertionError("a step was taken")
