"""Rows of ragged lengths under a small real model: what packing is for."""

from __future__ import annotations

import jax
import numpy as np

import models
from bilevel.data import EncodedRows, Row
from bilevel.objectives import exact_matches, response_losses

CONFIG = models.DecoderConfig(vocab_size=17, width=8, layers=1, heads=2, kv_heads=1, mlp_width=12)


def token_scores(params: dict, batch: dict) -> models.TokenScores:
    return models.token_scores(params, batch, CONFIG)


LOSSES = response_losses(token_scores)
MATCHES = exact_matches(token_scores)


def parameters(dtype: type = np.float32) -> dict:
    return models.init(CONFIG, jax.random.key(0), dtype)


def rows(count: int, seed: int) -> EncodedRows:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 11, count)
    lengths[0] = 16
    inside = np.arange(16) < lengths[:, None]
    return EncodedRows(
        tuple(Row(f"a:{line}", "", "", "") for line in range(count)),
        np.where(inside, rng.integers(1, 17, inside.shape), 0).astype(np.int32),
        inside.astype(np.int32),
        inside & (np.arange(16) >= (lengths[:, None] + 1) // 2),
    )


POOL, TRUSTED, TEST = rows(80, 0), rows(32, 1), rows(21, 2)
