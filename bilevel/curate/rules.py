"""Rules for `Choose` that go on from epoch to epoch: which of the candidates, and who is a candidate next.

They read any number of signals, of which the later ones were measured later, and sets by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bilevel.curate.order import Form, reordered
from bilevel.curate.passes import token_rows
from bilevel.curate.selection import Counted, response_texts, select_hard_and_diverse
from bilevel.schedule.choose import Choice, Rule

ORDER, CANDIDATES = "order", "candidates"


def everything(choice: Choice) -> Int[np.ndarray, " rows"]:
    """All rows, as they stand."""
    return np.arange(len(choice.dataset))


def hard_and_diverse(count: int, ngrams: Counted, carry: bool = False, said_of: str = "", **how: Any) -> Rule:
    """The candidates that `select_hard_and_diverse` takes, in that order; of equal ones the first in the data set.

    Args:
        count: how many.
        ngrams: what their n-grams are counted in.
        carry: whether the n-grams of all other sets that the move reads are used up already.
        said_of: stands before what the user is told.
        **how: further arguments of `select_hard_and_diverse`.
    """

    def rule(choice: Choice) -> Int[np.ndarray, " chosen"]:
        rows, candidates = token_rows(choice.dataset, "complexity"), np.sort(choice.sets[CANDIDATES])
        earlier = [ids for name, ids in choice.sets.items() if name != CANDIDATES]
        used = response_texts(rows, np.concatenate(earlier), ngrams) if carry and earlier else None
        texts = response_texts(rows, candidates, ngrams)
        found = select_hard_and_diverse(latest(choice.columns)[candidates], texts, count, used=used, **how)
        for line in found.notices:
            choice.warn(f"{said_of}{line}")
        return candidates[found.ids]

    return rule


def next_order(chosen: str, form: Form = "clean", limit: float = 1.0) -> Rule:
    """All rows, `reordered` after the candidates' choice.

    Args:
        chosen: the set of those that were chosen.
        form: see `reordered`.
        limit: likewise.
    """

    def rule(choice: Choice) -> Int[np.ndarray, " rows"]:
        sets, scores = choice.sets, latest(choice.columns)
        return reordered(sets[ORDER], sets[chosen], scores, len(sets[CANDIDATES]), form, limit)

    return rule


def first_of_order(count: int) -> Rule:
    """The first rows of the order."""
    return lambda choice: choice.sets[ORDER][:count]


def latest(columns: Mapping[str, Float[np.ndarray, " rows"]]) -> Float[np.ndarray, " rows"]:
    """What was last measured of each row, where the columns come in the order in which they were measured."""
    first, *later = columns.values()
    found = np.array(first, np.float64)
    for values in later:
        found = np.where(np.isnan(values), found, values)
    return found
