"""Rows as token arrays: worded by a template, cut to a length, padded to one shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from bilevel.data.chat import ChatTemplate
from bilevel.data.exchange import Targets
from bilevel.data.rows import Rejected, Row
from bilevel.data.templates import Template
from bilevel.data.texts import Problem
from bilevel.data.tokenizer import Tokenizer
from bilevel.data.truncation import Fitted, Truncated, Truncation, fit
from bilevel.errors import InputError

_LENGTH_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows with their tokens, padded on the right to one length T; two of them are equal if they are the same.

    Args:
        rows: where the tokens come from; a row's position here is its `row_id`.
        tokens: token ids.
        segments: 1 on tokens, 0 on padding.
        loss_mask: true on response tokens and the end token.
    """

    rows: tuple[Row, ...]
    tokens: Int32[np.ndarray, "rows positions"]
    segments: Int32[np.ndarray, "rows positions"]
    loss_mask: Bool[np.ndarray, "rows positions"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Int32[np.ndarray, " rows"]:
        """Tokens of each row, padding left out."""
        return self.segments.sum(axis=1, dtype=np.int32)

    def batch(self, indices: Int[np.ndarray, "*batches rows"] | Sequence[int]) -> dict[str, np.ndarray]:
        """Padded batch of the rows at these positions; -1 gives a filler row whose loss mask is all false.

        Positions may have leading axes (lower steps, micro-batches), which every array then has too.
        """
        row_id = np.asarray(indices, dtype=np.int32)
        if row_id.size and not -1 <= row_id.min() <= row_id.max() < len(self):
            raise ValueError(
                f"positions must lie in -1 .. {len(self) - 1}, got {row_id.min()} .. {row_id.max()}"
            )
        real = (row_id >= 0)[..., None]
        return {
            "tokens": np.where(real, self.tokens[row_id], 0),
            "segments": np.where(real, self.segments[row_id], 0),
            "loss_mask": self.loss_mask[row_id] & real,
            "row_id": row_id,
        }

    def select(self, indices: Int[np.ndarray, " chosen"] | Sequence[int]) -> "EncodedRows":
        """A set of its own from the rows at these positions, with new row ids and the same length T."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = tuple(self.rows[position] for position in chosen)
        return EncodedRows(rows, self.tokens[chosen], self.segments[chosen], self.loss_mask[chosen])


class Encoding(NamedTuple):
    """What `encode_rows` returns."""

    encoded: EncodedRows
    rejected: tuple[Rejected, ...]
    truncated: Truncated


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    template: Template | ChatTemplate,
    max_length: int,
    truncation: Truncation = "response_first",
    targets: Targets = "all",
) -> Encoding:
    """Token arrays of rows, in a template's wording and within a length.

    Args:
        rows: what to encode.
        tokenizer: a fast tokenizer with an end token.
        template: wording around the texts.
        max_length: the most tokens a row may have.
        truncation: what rows that are longer lose; see `bilevel.data.truncation.fit`.
        targets: which responses of a conversation are learned.

    Returns:
        The encoded rows, as wide as the longest of them rounded up to a multiple of 8; rows without a
        response token; the ids of rows that were cut.

    Raises:
        InputError: no row can be encoded, or `max_length` leaves no room for a response.
    """
    if max_length < 3:
        raise InputError(
            f"maximum length {max_length} leaves no room for prompt and response; give at least 3 tokens"
        )
    kept: list[tuple[Row, Fitted]] = []
    rejected: list[Rejected] = []
    for row, found in zip(rows, template.exchanges(rows, tokenizer, targets), strict=True):
        fitted = (
            found
            if isinstance(found, Problem)
            else fit(found, max_length, tokenizer.bos_token_id, truncation)
        )
        if isinstance(fitted, Problem):
            rejected.append(Rejected(row, *fitted))
        else:
            kept.append((row, fitted))
    if not kept:
        first = f" (first {rejected[0].id}: {rejected[0].reason}; {rejected[0].remedy})" if rejected else ""
        raise InputError(f"none of {len(rows)} rows can be encoded{first}")
    truncated = Truncated(
        tuple(row.id for row, fitted in kept if fitted.prompt_cut),
        tuple(row.id for row, fitted in kept if fitted.response_cut),
        tuple(row.id for row, fitted in kept if fitted.turns_lost),
        max(fitted.length for _, fitted in kept),
    )
    return Encoding(_padded(kept), tuple(rejected), truncated)


def _padded(kept: Sequence[tuple[Row, Fitted]]) -> EncodedRows:
    longest = max(len(fitted.tokens) for _, fitted in kept)
    width = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    tokens = np.zeros((len(kept), width), np.int32)
    segments = np.zeros((len(kept), width), np.int32)
    loss_mask = np.zeros((len(kept), width), bool)
    for position, (_, fitted) in enumerate(kept):
        length = len(fitted.tokens)
        tokens[position, :length] = fitted.tokens
        segments[position, :length] = 1
        loss_mask[position, :length] = fitted.targets
    return EncodedRows(tuple(row for row, _ in kept), tokens, segments, loss_mask)
