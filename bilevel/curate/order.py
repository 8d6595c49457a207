"""Which rows are looked at next: the order that a selection leaves behind."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

Form = Literal["clean", "author"]


def reordered(
    order: Int[np.ndarray, " rows"],
    chosen: Int[np.ndarray, " chosen"],
    complexity: Float[np.ndarray, " rows"],
    looked_at: int,
    form: Form = "clean",
    limit: float = 1.0,
) -> Int[np.ndarray, " rows"]:
    """The rows in the order in which the next round considers them, those that were just chosen first.

        clean    chosen in pick order | all others below the limit, highest first | those at the limit or above
        author   chosen in pick order | rows at the limit or above, in their order | the rest, highest first |
                 what was not looked at, as it stood

    As the authors' code orders them, rows too hard to be chosen come before the next-hardest, and what was not looked
    at never comes up again: later rounds choose among the first round's first rows. `clean` lets a row whose
    complexity fell sink, and the next ones rise. Rows that were not measured (nan) stand last, of what was looked at
    under `author`; they are never lost. Equal rows keep their order.

    >>> scores = np.array([0.9, 1.2, 0.3, 0.8, 0.7])
    >>> reordered(np.arange(5), np.array([4]), scores, 4, "clean").tolist()
    [4, 0, 3, 2, 1]
    >>> reordered(np.arange(5), np.array([0]), scores, 4, "author").tolist()
    [0, 1, 3, 2, 4]

    Args:
        order: the order before, each row once.
        chosen: rows of this round's choice, in pick order.
        complexity: of every row, as last measured.
        looked_at: how many rows, from the front of the order, the choice was made from.
        form: `clean` or `author`.
        limit: complexity from which a row is too hard.
    """
    ids = order if form == "clean" else order[:looked_at]
    left = ids[~np.isin(ids, chosen)]
    values = complexity[left]
    ranked = left[np.argsort(-values, kind="stable")]
    below, unknown = ranked[complexity[ranked] < limit], left[np.isnan(values)]
    if form == "clean":
        hard = ranked[complexity[ranked] >= limit]
        return np.concatenate([chosen, below, hard, unknown])
    return np.concatenate([chosen, left[values >= limit], below, unknown, order[looked_at:]])
