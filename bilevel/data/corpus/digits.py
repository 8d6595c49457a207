"""Digits with wrong labels: rows that are no text, for data hyper-cleaning."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from bilevel.data.dataset import ArrayRows
from bilevel.data.sets import PreparedSets
from bilevel.errors import InputError

CLASSES = 10


class Digits(NamedTuple):
    """Three disjoint sets of digits.

    Attributes:
        sets: `pool`, rows to weight, some of whose labels are wrong; `validation` and `test`, rows with right labels.
            Columns: `x`, 64 brightnesses from -1 to 1, and `y`, the label.
        wrong: which labels of the pool are wrong; kept apart, since training must not see it.
    """

    sets: PreparedSets[ArrayRows]
    wrong: Bool[np.ndarray, " rows"]


def make_digits(seed: int, rows: int = 900, trusted: int = 100, noise: float = 0.5) -> Digits:
    """Sets of scikit-learn's digits; a wrong label is one of the nine others, each as likely.

    >>> digits = make_digits(seed=0, rows=20, trusted=10)
    >>> {name: len(rows) for name, rows in digits.sets.items()}
    {'pool': 20, 'validation': 10, 'test': 1767}
    >>> digits.sets["pool"].batch([0, 1])["x"].shape
    (2, 64)

    Args:
        seed: chooses the sets and the wrong labels.
        rows: rows of the pool.
        trusted: rows of the validation set; all others are test rows.
        noise: share of the pool's labels that are wrong.

    Returns:
        The sets, with ids `digit:N`, N the position in scikit-learn's list from 1.

    Raises:
        InputError: more rows than there are digits, or a share outside (0, 1).
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    if not 0 < noise < 1:
        raise InputError(f"noise {noise:g} is no share of the labels; give a number between 0 and 1")
    if min(rows, trusted) < 1 or rows + trusted >= len(x):
        raise InputError(
            f"rows {rows} and trusted {trusted}: give at least 1 of each, and leave some of the {len(x)} digits to "
            "test on"
        )
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(x))
    x = (x[order] / 8.0 - 1.0).astype(np.float32)
    y = y[order].astype(np.int32)
    wrong = draw.random(rows) < noise
    shifted = (y[:rows] + draw.integers(1, CLASSES, rows)) % CLASSES
    y[:rows] = np.where(wrong, shifted, y[:rows])
    names = [f"digit:{place + 1}" for place in order]
    borders = {
        "pool": slice(0, rows),
        "validation": slice(rows, rows + trusted),
        "test": slice(rows + trusted, None),
    }
    sets = {name: ArrayRows({"x": x[part], "y": y[part]}, names[part]) for name, part in borders.items()}
    return Digits(PreparedSets(sets=sets), wrong)
