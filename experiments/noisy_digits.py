"""Digits with wrong labels, and a small classifier of them: the lower level of data hyper-cleaning."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.datasets import load_digits

from bilevel.core import Batch, Mean, RowLosses
from bilevel.errors import InputError

CLASSES = 10
_RIDGE = 1e-2


class NoisyDigits(NamedTuple):
    """Three disjoint sets of scikit-learn's digits, as batches of `x` [rows, 64], `y` [rows] and `row_id`.

    Attributes:
        pool: rows to weight; some labels are wrong.
        trusted: rows with right labels.
        test: held-out rows with right labels.
        wrong: bool [pool], which labels are wrong.
    """

    pool: Batch
    trusted: Batch
    test: Batch
    wrong: np.ndarray


def noisy_digits(seed: int, rows: int, trusted: int, noise: float) -> NoisyDigits:
    """Draws the sets; a wrong label is one of the nine others, each as likely.

    Raises:
        InputError: more rows than there are digits, or a share outside (0, 1).
    """
    x, y = load_digits(return_X_y=True)
    if not 0 < noise < 1:
        raise InputError(f"--noise {noise:g} is no share of the labels: give a number between 0 and 1")
    if min(rows, trusted) < 1 or rows + trusted >= len(x):
        raise InputError(
            f"--rows {rows} and --trusted {trusted}: give at least 1 of each, and leave some of the {len(x)} digits to "
            "test on"
        )
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(x))
    x = (x[order] / 8.0 - 1.0).astype(np.float32)
    y = y[order].astype(np.int32)
    wrong = draw.random(rows) < noise
    shifted = (y[:rows] + draw.integers(1, CLASSES, rows)) % CLASSES

    def batch(start: int, end: int) -> dict[str, np.ndarray]:
        return {"x": x[start:end], "y": y[start:end], "row_id": np.arange(end - start, dtype=np.int32)}

    pool = batch(0, rows) | {"y": np.where(wrong, shifted, y[:rows]).astype(np.int32)}
    return NoisyDigits(pool, batch(rows, rows + trusted), batch(rows + trusted, len(x)), wrong)


def classifier(key: Array, width: int) -> dict[str, Array]:
    """Returns the parameters of a classifier with one hidden layer, or of softmax regression at width 0."""
    sizes = (64, width, CLASSES) if width else (64, CLASSES)
    params: dict[str, Array] = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        kernel = jax.random.normal(jax.random.fold_in(key, number), (inputs, outputs)) / inputs**0.5
        params |= {f"kernel_{number}": kernel, f"bias_{number}": jnp.zeros(outputs)}
    return params


def logits(params: dict[str, Array], x: Float[Array, "rows 64"]) -> Float[Array, "rows classes"]:
    """Returns the classifier's logits."""
    layers = len(params) // 2
    for number in range(layers):
        x = x @ params[f"kernel_{number}"] + params[f"bias_{number}"]
        x = jnp.tanh(x) if number < layers - 1 else x
    return x


def row_losses(params: dict[str, Array], batch: Batch) -> RowLosses:
    """Returns cross-entropies in nats; each carries the ridge, so that the weighted mean does."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(params, batch["x"])), batch["y"][:, None], 1)[:, 0]
    ridge = 0.5 * _RIDGE * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return RowLosses(ridge - chosen, jnp.ones(chosen.shape))


def upper(outer: Any, params: dict[str, Array], batch: Batch) -> Mean:
    """Returns the mean loss on trusted rows."""
    return row_losses(params, batch).weighted()


def accuracy(params: dict[str, Array], batch: Batch) -> Float[Array, ""]:
    """Returns the share of right answers."""
    return jnp.mean(jnp.argmax(logits(params, batch["x"]), axis=1) == batch["y"])
