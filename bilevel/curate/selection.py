"""Rows for an epoch: hard but not too hard, and different from each other; from scores and texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from bilevel.curate.greedy import Lengths, pick_diverse
from bilevel.curate.terms import Terms, token_terms, word_terms
from bilevel.data import EncodedRows
from bilevel.data.parts import responses
from bilevel.errors import InputError

Counted = Literal["words", "tokens"]
Texts = Sequence[str] | tuple[np.ndarray, np.ndarray]
"""Texts, or token ids and which of them count, both [rows, positions]."""


class Selection(NamedTuple):
    """Rows in the order in which they were taken, and why.

    Attributes:
        ids: places among the rows that there were.
        complexity: their S_COM.
        diversity: their S_DIV when they were taken; nan for those that were taken by their complexity alone.
        notices: lines for the user: fewer rows than asked for, n-grams used up, rows that were not measured.
    """

    ids: Int[np.ndarray, " taken"]
    complexity: Float[np.ndarray, " taken"]
    diversity: Float[np.ndarray, " taken"]
    notices: tuple[str, ...]


def select_hard_and_diverse(
    complexity: Float[np.ndarray, " rows"],
    texts: Texts,
    count: int,
    *,
    decay: float = 0.1,
    limit: float = 1.0,
    diverse: bool = True,
    longest: int = 3,
    lengths: Lengths = "as_they_are",
    used: Texts | None = None,
) -> Selection:
    """Takes rows below a limit of complexity by complexity times diversity, IterIT's S_COM S_DIV.

    N-grams are weighted by TF-IDF over the rows below the limit; see `pick_diverse` for the rest. Where all n-grams are
    used up, the rows that are left are taken by their complexity.

    >>> said = ["Paris.", "Paris, in France.", "A red fox."]
    >>> select_hard_and_diverse(np.array([0.5, 0.9, 1.2]), said, count=2).ids.tolist()
    [1, 0]

    Args:
        complexity: S_COM; nan where it is not known.
        texts: of the responses: words, or token ids.
        count: how many to take.
        decay: gamma.
        limit: rows at it or above are too hard.
        diverse: whether diversity counts; without it the highest complexities are taken.
        longest: words or tokens of the longest n-gram.
        lengths: as in `pick_diverse`.
        used: responses that were chosen in earlier epochs, and whose n-grams stay used up.

    Raises:
        InputError: no row is below the limit.
    """
    scores = np.asarray(complexity, np.float64)
    able = np.flatnonzero(scores < limit)  # what is not known is not
    notices = []
    unknown = int(np.sum(np.isnan(scores)))
    if unknown:
        notices.append(f"{unknown} of {len(scores)} rows have no complexity ratio and were not considered")
    if not len(able):
        raise InputError(
            f"none of {len(scores)} rows has a complexity ratio below {limit:g}: this model does not use prompts yet; "
            "begin with one that does, or give it some experience first"
        )
    if len(able) < count:
        notices.append(
            f"{len(able)} of {len(scores)} rows have a ratio below {limit:g}: fewer than {count} were taken"
        )
    ranked = able[np.argsort(-scores[able], kind="stable")]
    taken, gains = np.zeros(0, np.int64), np.zeros(0)
    if diverse:
        terms = _terms(_some(texts, able), longest)
        weights = None if used is None else decay ** terms.occurs(used).astype(np.float64)
        picks = pick_diverse(scores[able], terms.matrix, min(count, len(able)), decay, weights, lengths)
        taken, gains = able[picks.ids], picks.diversity
        if picks.exhausted is not None:
            notices.append(
                f"all n-grams were used up after {picks.exhausted} rows; the rest was taken by complexity alone"
            )
    rest = ranked[~np.isin(ranked, taken)][: max(0, count - len(taken))]
    ids = np.concatenate([taken, rest])
    return Selection(ids, scores[ids], np.concatenate([gains, np.full(len(rest), np.nan)]), tuple(notices))


def response_texts(rows: EncodedRows, ids: Int[np.ndarray, " rows"], of: Counted) -> Texts:
    """The responses of some rows: their texts, or their tokens without what ends them."""
    if of == "words":
        return [rows.rows[row].output for row in ids.tolist()]
    first, end = (values[ids] for values in responses(rows))
    positions = np.arange(rows.tokens.shape[1])
    # Every response ends with the same token, unless it was cut.
    return rows.tokens[ids], (positions >= first[:, None]) & (
        positions < np.maximum(end - 1, first + 1)[:, None]
    )


def _terms(texts: Texts, longest: int) -> Terms:
    if isinstance(texts, tuple):
        return token_terms(texts[0], texts[1], longest)
    return word_terms(texts, longest)


def _some(texts: Texts, places: Int[np.ndarray, " some"]) -> Texts:
    if isinstance(texts, tuple):
        return texts[0][places], texts[1][places]
    return [texts[place] for place in places.tolist()]
