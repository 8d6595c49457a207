"""A task that a linear model learns in a moment: rows of four tokens whose third token is the answer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core import RowLosses
from bilevel.data import EncodedRows, Row
from bilevel.layout.devices import data_mesh
from bilevel.schedule import Context

VOCABULARY = 6


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


class Silent:
    def advance(self, steps, values):
        pass

    def close(self):
        pass


def context(seed: int = 0, devices: int = 1, log=lambda step, numbers: None, **options) -> Context:
    data = {
        "pool": options.pop("pool", None) or encoded(60, seed, faulty=24),
        "validation": encoded(16, seed + 100),
        "test": encoded(37, seed + 200),
    }
    mesh = data_mesh(jax.devices()[:devices])
    settings = {"log_every": 10, "evaluation_rows": 16} | options
    return Context(data, row_losses, evaluate, mesh, seed, log, lambda steps: Silent(), **settings)
