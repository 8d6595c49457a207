"""How varied texts are, by their n-grams: within a row, of a row among the others, of all rows together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bilevel.data.grams import token_runs

_WORD = re.compile(r"\w+|[^\w\s]")


class NgramDiversity(NamedTuple):
    """Shares of n-grams, each in [0, 1]; nan for a row that is shorter than one.

    Attributes:
        distinct: of a row's n-grams, those that are different: low for a row that repeats itself.
        own: of a row's different n-grams, those that no other row has: 0 for a twin, 1 for a row like no other.
        together: of all rows' n-grams, those that are different (distinct-n): how varied the rows are as a set.
    """

    distinct: Float[np.ndarray, " rows"]
    own: Float[np.ndarray, " rows"]
    together: float


def ngram_diversity(rows: Sequence[str] | Sequence[Sequence[int]], size: int = 3) -> NgramDiversity:
    """Measures the diversity of rows by runs of words, or of token ids.

    >>> ngram_diversity(["a b a b", "a b c"], size=2)
    NgramDiversity(distinct=array([0.66666667, 1.        ]), own=array([0.5, 0.5]), together=0.6)

    Args:
        rows: texts, whose words (and marks) are counted in lower case, or token ids.
        size: words or tokens of an n-gram.

    Raises:
        ValueError: a size below 1.

    References:
        Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models, 2016 (distinct-n).
    """
    if size < 1:
        raise ValueError(f"size must be 1 or more, not {size}")
    tokens, inside = _as_tokens(rows)
    row, run = token_runs(tokens, inside, size)
    total = np.bincount(row, minlength=len(rows))
    different_runs, number = np.unique(run, return_inverse=True)
    pairs = np.unique(np.stack([number, row]), axis=1)
    different = np.bincount(pairs[1], minlength=len(rows))
    alone = np.bincount(pairs[0], minlength=len(different_runs))[pairs[0]] == 1
    own = np.bincount(pairs[1], alone, len(rows))
    with np.errstate(invalid="ignore"):
        together = len(different_runs) / len(run) if len(run) else float("nan")
        return NgramDiversity(different / total, own / different, together)


def words(text: str) -> list[str]:
    """The words and marks of a text, in lower case.

    >>> words("A cat, sat.")
    ['a', 'cat', ',', 'sat', '.']
    """
    return _WORD.findall(text.lower())


def _as_tokens(rows: Sequence[str] | Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    known: dict[str, int] = {}
    numbered = [
        [known.setdefault(word, len(known)) for word in words(row)] if isinstance(row, str) else row
        for row in rows
    ]
    lengths = np.array([len(row) for row in numbered], np.int64)
    inside = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    tokens = np.zeros(inside.shape, np.int64)
    tokens[inside] = [token for row in numbered for token in row]
    return tokens, inside
