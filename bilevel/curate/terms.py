"""Rows as weighted n-grams, of words or of token ids: what diversity is counted in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from bilevel.data.grams import token_runs

Sparse = Any
"""A `scipy.sparse` matrix in compressed rows."""


@dataclass(frozen=True)
class Terms:
    """Rows as TF-IDF vectors of unit length.

    Attributes:
        matrix: float64 [rows, terms], a row without any term empty.
        occurs: from other rows, given as the ones here were, to how many of them hold each term, [terms].
    """

    matrix: Sparse
    occurs: Callable[[Any], Int[np.ndarray, " terms"]]


def word_terms(texts: Sequence[str], longest: int = 3) -> Terms:
    """TF-IDF of word n-grams by scikit-learn: lower case, words of two characters or more, smoothed, unit length.

    Digits and single letters are dropped, and so is all of a language that writes no spaces: count tokens there.

    >>> word_terms(["a red fox", "a red red hen"], longest=1).matrix.shape
    (2, 3)

    Args:
        texts: a text a row.
        longest: words of the longest n-gram.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    _check(longest)
    counted = TfidfVectorizer(ngram_range=(1, longest))
    try:
        matrix = counted.fit_transform(texts)
    except ValueError:  # scikit-learn's word for texts of which none has a word
        return _no_terms(len(texts))
    return Terms(matrix, lambda others: _holders(counted.transform(others)))


def token_terms(
    tokens: Int[np.ndarray, "rows positions"], inside: Bool[np.ndarray, "rows positions"], longest: int = 3
) -> Terms:
    """The same of token ids, hashed to 64 bits: of every language, digits and all, in memory that the runs take.

    >>> tokens = np.array([[5, 6, 5], [5, 7, 0]])
    >>> token_terms(tokens, tokens > 0, longest=2).matrix.shape
    (2, 6)

    Args:
        tokens: token ids.
        inside: which of them count (the response); those of a row must stand side by side.
        longest: tokens of the longest n-gram.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    _check(longest)
    row, hashes = _runs((tokens, inside), longest)
    if not len(row):
        return _no_terms(len(tokens))
    known, column = np.unique(hashes, return_inverse=True)
    counts = csr_matrix((np.ones(len(row)), (row, column)), shape=(len(tokens), len(known)))

    def occurs(others: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        row, hashes = _runs(others, longest)
        place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        held = known[place] == hashes
        pairs = np.unique(np.stack([row[held], place[held]]), axis=1)
        return np.bincount(pairs[1], minlength=len(known))

    return Terms(TfidfTransformer().fit_transform(counts), occurs)


def _runs(given: tuple[np.ndarray, np.ndarray], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and hash of every run of 1 .. longest tokens; runs of two lengths never share a hash but by chance."""
    found = [token_runs(*given, size) for size in range(1, longest + 1)]
    rows, hashes = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(hashes)


def _holders(matrix: Sparse) -> np.ndarray:
    return np.bincount(matrix.indices, minlength=matrix.shape[1])


def _no_terms(rows: int) -> Terms:
    from scipy.sparse import csr_matrix

    return Terms(csr_matrix((rows, 0)), lambda others: np.zeros(0, np.int64))


def _check(longest: int) -> None:
    if longest < 1:
        raise ValueError(f"longest must be 1 or more, not {longest}")
