"""Runs of tokens (n-grams) as hashes: what rows are compared by without a model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt64


def token_runs(
    tokens: Int[np.ndarray, "rows positions"],
    inside: Bool[np.ndarray, "rows positions"],
    size: int,
    shorter: bool = False,
) -> tuple[Int[np.ndarray, " runs"], UInt64[np.ndarray, " runs"]]:
    """Row and hash, in 64 bits, of every run of so many tokens.

    >>> tokens = np.array([[5, 6, 5, 6], [5, 6, 0, 0]])
    >>> row, run = token_runs(tokens, tokens > 0, 2)
    >>> row.tolist(), bool(run[0] == run[2] == run[3]), bool(run[0] == run[1])
    ([0, 0, 0, 1], True, False)

    Args:
        tokens: token ids.
        inside: which tokens count; those of a row must stand side by side.
        size: tokens of a run.
        shorter: whether a row with fewer tokens is one run, as long as it is.
    """
    positions = tokens.shape[1]
    counted = np.where(inside, tokens.astype(np.uint64) + 1, 0)
    padded = np.pad(counted, ((0, 0), (0, size)))
    hashes = np.zeros(tokens.shape, np.uint64)
    for place in range(size):
        hashes = (hashes ^ padded[:, place : place + positions]) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    lengths = inside.sum(axis=1)
    first = np.argmax(inside, axis=1)
    runs = np.maximum(lengths - size + 1, np.minimum(lengths, 1) if shorter else 0)
    place = np.arange(positions) - first[:, None]
    begins = (place >= 0) & (place < runs[:, None])
    return np.nonzero(begins)[0], hashes[begins]
