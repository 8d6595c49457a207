"""Passes of a model over rows that share sequences, however different their lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from jaxtyping import Int

from bilevel.data import Dataset, EncodedRows, PackedRows
from bilevel.errors import InputError
from bilevel.schedule.score import Asked

_RUNG = 0.87
"""Ratio of the sizes that a batch may have: little is padding, and few of them are ever compiled."""


def row_pass(
    asked: Asked,
    function: Callable[[Any, Any], Any],
    rows: EncodedRows,
    ids: Int[np.ndarray, " rows"],
    what: Hashable,
) -> Any:
    """What a function of the model says of some rows, by row: one batch, packed where the model keeps rows apart.

    Args:
        asked: by whom, and with what.
        function: `(params, batch) -> arrays [rows, ...]`.
        rows: the rows, or what was made of them.
        ids: which, -1 for fillers, as many as the devices can share.
        what: names the rows, so that their packing is remembered.
    """
    context = asked.context
    shares = context.layout.shares

    def packed() -> EncodedRows | PackedRows:
        if not context.model.packs:
            return rows
        sizes, size = set[int](), float(len(ids))
        while size >= shares:
            sizes.add(-(-int(size) // shares) * shares)
            size *= _RUNG
        return PackedRows(rows, rows.tokens.shape[1], tuple(sorted(sizes)))

    arranged = context.kept.get(("pass", what, asked.dataset.fingerprint, len(ids)), packed)
    batch = context.layout.batch(arranged, ids)
    return context.layout.gather(context.kept.compiled(function)(asked.params, batch))


def filled(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " slots"]:
    """The ids of a piece, made up to a batch by fillers, so that the last piece compiles nothing anew."""
    context = asked.context
    size = max(context.layout.rounded(context.evaluation_rows), context.layout.rounded(len(ids)))
    found = np.full(size, -1, np.int64)
    found[: len(ids)] = ids
    return found


def row_digests(rows: EncodedRows, ids: Int[np.ndarray, " rows"]) -> list[str]:
    """What a model sees of each of some rows, in 32 letters."""
    return [
        hashlib.sha256(
            rows.tokens[row, :length].tobytes() + rows.loss_mask[row, :length].tobytes()
        ).hexdigest()[:32]
        for row, length in zip(ids.tolist(), rows.lengths[ids].tolist(), strict=True)
    ]


def token_rows(dataset: Dataset, what: str) -> EncodedRows:
    """The rows as tokens.

    Raises:
        InputError: they are no text.
    """
    if not isinstance(dataset, EncodedRows):
        raise InputError(f"{what} is measured of rows of tokens alone: these are {type(dataset).__name__}")
    return dataset
