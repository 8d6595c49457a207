"""Rows that count on from a word, a table that half knows how, and IterIT on them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import Model, TrainingSettings
from bilevel.data import EncodedRows, Row
from bilevel.layout import data_layout
from bilevel.methods import IterITSettings, iterit
from bilevel.schedule import RunState, Score, Train, run_schedule
from bilevel.schedule.context import Context, Kept

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


OFTEN = {"model": MODEL, "log_every": 1, "evaluation_rows": 16, "kept": KEPT}


def columns(state: RunState, upto: int) -> np.ndarray:
    """The ratio of every row as last measured by an epoch."""
    found = state.column("complexity_1").astype(np.float64)
    for epoch in range(2, upto + 1):
        now = state.column(f"complexity_{epoch}")
        found = np.where(np.isnan(now), found, now)
    return found
