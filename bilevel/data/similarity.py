"""What the tokens of rows say of them: how long they are, how repeated, how far from the others, how near to others.

Rows are compared by TF-IDF of their token ids (scikit-learn's, smoothed, unit length). That needs no model, is the same
at every stage of a run, and works for instructions and plain text alike; mean hidden states would move while the model
trains, so that a change of preference could not be told from a change of the measure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from bilevel.data.encode import EncodedRows
from bilevel.data.grams import token_runs

_GRAM = 5
_ROWS_AT_ONCE = 1024


class TokenSignals(NamedTuple):
    """Columns, a number for each row."""

    length: Float[np.ndarray, " rows"]
    """Tokens."""
    duplication: Float[np.ndarray, " rows"]
    """Share of the row's runs of five tokens that stand in another row, too; 1 for an exact twin."""
    centroid_distance: Float[np.ndarray, " rows"]
    """1 - cosine to the mean of all rows: high for unusual rows."""
    validation_similarity: Float[np.ndarray, " rows"]
    """Cosine to the most similar validation row."""


def token_signals(rows: EncodedRows, validation: EncodedRows) -> TokenSignals:
    """Measures rows by their tokens.

    Args:
        rows: what to measure.
        validation: rows to compare with; their words do not count for the frequencies of words.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    terms = 1 + max(int(rows.tokens.max(initial=0)), int(validation.tokens.max(initial=0)))
    counted = TfidfTransformer().fit(_counts(rows, terms))
    own, trusted = counted.transform(_counts(rows, terms)), counted.transform(_counts(validation, terms))
    centroid = np.asarray(own.mean(axis=0)).ravel()
    length = np.linalg.norm(centroid)
    nearest = [
        (own[start : start + _ROWS_AT_ONCE] @ trusted.T).max(axis=1).toarray().ravel()
        for start in range(0, len(rows), _ROWS_AT_ONCE)
    ]
    return TokenSignals(
        rows.lengths.astype(np.float64),
        _duplication(rows),
        1 - (own @ centroid) / (length if length > 0 else 1.0),
        np.concatenate(nearest),
    )


def _counts(rows: EncodedRows, terms: int) -> Any:
    from scipy.sparse import csr_matrix

    real = rows.segments > 0
    row = np.nonzero(real)[0]
    return csr_matrix((np.ones(len(row)), (row, rows.tokens[real])), shape=(len(rows), terms))


def _duplication(rows: EncodedRows) -> Float[np.ndarray, " rows"]:
    row, gram = token_runs(rows.tokens, rows.segments > 0, _GRAM, shorter=True)
    # In how many rows each run of tokens stands; a row that repeats itself counts once.
    _, inverse = np.unique(gram, return_inverse=True)
    pairs = np.unique(np.stack([inverse, row], axis=1), axis=0)
    shared = np.bincount(pairs[:, 0])[pairs[:, 0]] > 1
    return np.bincount(pairs[:, 1], shared, len(rows)) / np.maximum(
        np.bincount(pairs[:, 1], minlength=len(rows)), 1
    )
