"""Rows as token arrays: worded by a template, cut to a length, padded to one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from bilevel.data.chat import ChatTemplate
from bilevel.data.dataset import (
    ROW_ID,
    TOKEN_COLUMNS,
    checked_columns,
    checked_ids,
    digest,
    filler_of,
    gathered,
    joined_columns,
    sizes_of,
)
from bilevel.data.exchange import Targets
from bilevel.data.rows import Rejected, Row, row_line
from bilevel.data.templates import Template
from bilevel.data.texts import Unusable
from bilevel.data.tokenizer import Tokenizer
from bilevel.data.truncation import Fitted, Truncated, Truncation, fit
from bilevel.errors import InputError

_LENGTH_MULTIPLE = 8


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Rows with their tokens, padded on the right to one length T; two of them are equal if they are the same.

    >>> tokens = np.array([[5, 6, 0], [7, 8, 9]], np.int32)
    >>> segments = (tokens > 0).astype(np.int32)
    >>> named = Row("a:1", "5", "", "6"), Row("a:2", "7", "", "8 9")
    >>> questions = {"question_id": np.array([0, 4])}
    >>> rows = EncodedRows(named, tokens, segments, segments > 0, questions)
    >>> rows.batch([1, -1])["question_id"], dict(rows.sizes)
    (array([ 4, -1], dtype=int32), {'row_id': 2, 'question_id': 5})

    Attributes:
        rows: where the tokens come from; a row's position here is its `row_id`.
        tokens: token ids.
        segments: 1 on tokens, 0 on padding.
        loss_mask: true on response tokens and the end token.
        columns: further numbers, one a row or one a token, that go into every batch. Names that end in `_id` are
            indices: whole numbers from 0, or -1 for none.

    Raises:
        InputError: a column that does not fit the rows, or would overwrite what is theirs.
    """

    rows: tuple[Row, ...]
    tokens: Int32[np.ndarray, "rows positions"]
    segments: Int32[np.ndarray, "rows positions"]
    loss_mask: Bool[np.ndarray, "rows positions"]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = checked_columns(self.columns, len(self.rows), TOKEN_COLUMNS, self.tokens.shape[1])
        object.__setattr__(self, "columns", checked)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Int32[np.ndarray, " rows"]:
        """Tokens of each row, padding left out."""
        return self.segments.sum(axis=1, dtype=np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """What these rows are: their texts, labels, lineage, tokens and columns."""
        return digest(map(row_line, self.rows), self._arrays)

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many rows there are, and one more than the largest value of each index column."""
        return sizes_of(len(self), self.columns)

    def batch(self, indices: Int[np.ndarray, "*batches rows"] | Sequence[int]) -> dict[str, np.ndarray]:
        """Padded batch of the rows at these positions; -1 gives a filler row whose loss mask is all false.

        Positions may have leading axes (lower steps, micro-batches), which every array then has too.
        """
        row_id = checked_ids(indices, len(self))
        return {**gathered(self._arrays, row_id), ROW_ID: row_id}

    def names(self, indices: Sequence[int] | Int[np.ndarray, " rows"]) -> list[str]:
        """Stable ids of the rows at these positions; "" for -1."""
        return [self.rows[position].id if position >= 0 else "" for position in indices]

    def select(self, indices: Int[np.ndarray, " chosen"] | Sequence[int]) -> EncodedRows:
        """A set of its own from the rows at these positions, with new row ids and the same length T."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = tuple(self.rows[position] for position in chosen)
        arrays = {name: values[chosen] for name, values in self._arrays.items()}
        return _of_arrays(rows, arrays)

    def joined(self, *others: EncodedRows) -> EncodedRows:
        """A set of these rows and those of others behind them, as wide as the widest; indices keep their values.

        Raises:
            InputError: a column is not in all of the sets.
        """
        every = (self, *others)
        width = max(each.tokens.shape[1] for each in every)
        rows = tuple(row for each in every for row in each.rows)
        return _of_arrays(rows, joined_columns([each.widened(width)._arrays for each in every]))

    def widened(self, width: int) -> EncodedRows:
        """The same rows, padded to a larger length T.

        Raises:
            InputError: they are wider already.
        """
        missing = width - self.tokens.shape[1]
        if missing < 0:
            raise InputError(
                f"rows of width {self.tokens.shape[1]} do not fit into a width of {width}; raise it"
            )
        arrays = {
            name: values
            if values.ndim == 1
            else np.pad(values, ((0, 0), (0, missing)), constant_values=filler_of(name))
            for name, values in self._arrays.items()
        }
        return _of_arrays(self.rows, arrays) if missing else self

    @property
    def _arrays(self) -> dict[str, np.ndarray]:
        own = {"tokens": self.tokens, "segments": self.segments, "loss_mask": self.loss_mask}
        return {**own, **self.columns}


def _of_arrays(rows: tuple[Row, ...], arrays: dict[str, np.ndarray]) -> EncodedRows:
    columns = {name: values for name, values in arrays.items() if name not in TOKEN_COLUMNS}
    return EncodedRows(rows, arrays["tokens"], arrays["segments"], arrays["loss_mask"], columns)


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
    width: int | None = None,
) -> Encoding:
    """Token arrays of rows, in a template's wording and within a length.

    >>> from bilevel.data import PLAIN, train_tokenizer
    >>> tokenizer = train_tokenizer(["a"], 259)
    >>> rows = encode_rows([Row("a:1", "Hi.", "", "Hello.")], tokenizer, PLAIN, max_length=32).encoded
    >>> rows.tokens.shape, tokenizer.decode(rows.tokens[0][rows.loss_mask[0]])
    ((1, 16), 'Hello.</s>')

    Args:
        rows: what to encode.
        tokenizer: a fast tokenizer with an end token.
        template: wording around the texts.
        max_length: the most tokens a row may have.
        truncation: what rows that are longer lose; see `bilevel.data.truncation.fit`.
        targets: which responses of a conversation are learned.
        width: length T of the arrays, so that it stays the same when rows change; by default the longest row's length
            rounded up to a multiple of 8.

    Returns:
        The encoded rows; rows without a response token; the ids of rows that were cut.

    Raises:
        InputError: no row can be encoded, `max_length` leaves no room for a response, or a row is longer than `width`.
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
            if isinstance(found, Unusable)
            else fit(found, max_length, tokenizer.bos_token_id, truncation)
        )
        if isinstance(fitted, Unusable):
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
    marked = [Marked(row, fitted.tokens, fitted.targets) for row, fitted in kept]
    return Encoding(padded(marked, width), tuple(rejected), truncated)


class Marked(NamedTuple):
    """A row's tokens, and which of them count."""

    row: Row
    tokens: Sequence[int]
    targets: Bool[np.ndarray, " tokens"]


def padded(marked: Sequence[Marked], width: int | None = None) -> EncodedRows:
    """Rows as arrays, padded on the right.

    Args:
        marked: at least one row.
        width: length of the arrays; by default the longest row's, rounded up to a multiple of 8.

    Raises:
        InputError: a row is longer than `width`; the message names it.
    """
    longest = max(marked, key=lambda item: len(item.tokens))
    if width is None:
        width = -(-len(longest.tokens) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    elif len(longest.tokens) > width:
        raise InputError(
            f"{longest.row.id}: {len(longest.tokens)} tokens do not fit into a width of {width}; raise the width or "
            "lower the maximum length"
        )
    tokens = np.zeros((len(marked), width), np.int32)
    segments = np.zeros((len(marked), width), np.int32)
    loss_mask = np.zeros((len(marked), width), bool)
    for position, item in enumerate(marked):
        length = len(item.tokens)
        tokens[position, :length] = item.tokens
        segments[position, :length] = 1
        loss_mask[position, :length] = item.targets
    return EncodedRows(tuple(item.row for item in marked), tokens, segments, loss_mask)


def text_rows(dataset: Any) -> tuple[Row, ...]:
    """The rows of a data set as texts with their columns; none of rows that are no text.

    >>> from bilevel.data import ArrayRows
    >>> text_rows(ArrayRows({"x": np.eye(2)}))
    ()
    """
    return tuple(getattr(dataset, "rows", ()))
