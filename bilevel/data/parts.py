"""Parts of encoded rows as rows of their own: the prompt alone, the response alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from bilevel.data.encode import EncodedRows, Marked, padded

Span = tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]
"""First position of each row's response, and the one behind its last; equal for a row without one."""


def responses(rows: EncodedRows) -> Span:
    """Where each row's last response stands, its end token included.

    >>> mask = np.array([[False, True, True, False, True], [False, False, True, False, False]])
    >>> tokens = np.array([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]], np.int32)
    >>> from bilevel.data import Row
    >>> named = Row("a:1", "", "", ""), Row("a:2", "", "", "")
    >>> first, end = responses(EncodedRows(named, tokens, (tokens > 0).astype(np.int32), mask))
    >>> first.tolist(), end.tolist()
    ([4, 2], [5, 3])
    """
    positions = np.arange(rows.tokens.shape[1])
    end = np.max(np.where(rows.loss_mask, positions + 1, 0), axis=1)
    before = ~rows.loss_mask & (positions < end[:, None])
    return np.max(np.where(before, positions + 1, 0), axis=1), end


def response_header(rows: EncodedRows, first: Int[np.ndarray, " rows"]) -> tuple[int, ...]:
    """The tokens that end the prompt of every row: how a template says that the response follows.

    Args:
        rows: the rows.
        first: where their responses begin, as `responses` says; rows whose response begins the row are passed over.
    """
    prompted = np.flatnonzero(first > 0)
    if not len(prompted):
        return ()
    longest = int(first[prompted].min())
    # Columns count from the response backwards.
    endings = rows.tokens[prompted[:, None], first[prompted, None] - 1 - np.arange(longest)]
    same = np.all(endings == endings[0], axis=0)
    length = longest if same.all() else int(np.argmin(same))
    return tuple(endings[0, :length][::-1].tolist())


def prompts(rows: EncodedRows) -> EncodedRows:
    """What each row's last response answers: all tokens before it."""
    first, _ = responses(rows)
    return padded(
        [
            Marked(row, tokens[:length].tolist(), np.zeros(length, bool))
            for row, tokens, length in zip(rows.rows, rows.tokens, first.tolist(), strict=True)
        ]
    )


def with_and_without_prompt(
    rows: EncodedRows, header: Sequence[int] | None = None, start: int | None = None
) -> EncodedRows:
    """Twice as many rows: each as it is, and behind all of these each response without what it answers.

    Both count the tokens of the last response alone. Without its prompt a response follows the start token, if its row
    begins with one, and the header; where there is neither, the last token of its own prompt, since something must
    predict its first token. A row without a response counts nothing in either.

    Args:
        rows: the rows.
        header: how a prompt ends; by default what all prompts here end with, which is all of a prompt that every row
            shares.
        start: id of the start token, None without one.
    """
    first, end = responses(rows)
    if header is None:
        header = response_header(rows, first)
        header = header[header[:1] == (start,) :]  # prompts that are all the same begin alike, too
    whole: list[Marked] = []
    alone: list[Marked] = []
    for row, tokens, begin, stop in zip(
        rows.rows, rows.tokens.tolist(), first.tolist(), end.tolist(), strict=True
    ):
        ahead = [*tokens[: int(begin > 0 and tokens[0] == start)], *header] or tokens[
            max(0, begin - 1) : begin
        ]
        for found, before in ((whole, tokens[:begin]), (alone, ahead)):
            response = tokens[begin:stop]
            targets = np.arange(len(before) + len(response)) >= len(before)
            found.append(Marked(row, before + response, targets))
    return padded(whole + alone)
