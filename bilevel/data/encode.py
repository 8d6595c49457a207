"""Rows as token arrays: prompt and response tokenised apart, cut to a length, padded to one shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from bilevel.data.rows import Rejected, Row
from bilevel.data.templates import Template
from bilevel.data.tokenizer import Tokenizer
from bilevel.errors import InputError

_LENGTH_MULTIPLE = 8


@dataclass(frozen=True)
class EncodedRows:
    """Rows with their tokens, padded on the right to one length T.

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

    def batch(self, indices: Int[np.ndarray, " batch"] | Sequence[int]) -> dict[str, np.ndarray]:
        """Padded batch of the rows at these positions; -1 gives a filler row whose loss mask is all false."""
        row_id = np.asarray(indices, dtype=np.int32)
        if row_id.size and not -1 <= row_id.min() <= row_id.max() < len(self):
            raise ValueError(
                f"positions must lie in -1 .. {len(self) - 1}, got {row_id.min()} .. {row_id.max()}"
            )
        real = (row_id >= 0)[:, None]
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


@dataclass(frozen=True)
class Truncated:
    """Ids of rows that did not fit: whose prompt was cut, and whose response was cut."""

    prompts: tuple[str, ...]
    responses: tuple[str, ...]

    @property
    def warning(self) -> str:
        """One line for the user, "" where everything fits."""
        if not self.prompts and not self.responses:
            return ""
        first = (self.prompts + self.responses)[0]
        return (
            f"{len(self.prompts)} rows lost the start of their prompt and {len(self.responses)} the end of "
            f"their response to the length limit (first: {first}); raise the limit to keep them whole"
        )


class Encoding(NamedTuple):
    """What `encode_rows` returns."""

    encoded: EncodedRows
    rejected: tuple[Rejected, ...]
    truncated: Truncated


def encode_rows(rows: Sequence[Row], tokenizer: Tokenizer, template: Template, max_length: int) -> Encoding:
    """Token arrays of rows: [start token] prompt response [end token].

    Prompt and response are tokenised apart, so that a prompt's tokens never depend on its response: what is
    trained is what generation sees. Names of special tokens inside a row's text are plain text.

    A row longer than `max_length` keeps its response whole and loses tokens at the start of its prompt, but
    never its start token nor the prompt's last token, which says that the response follows. Where the
    response does not fit even so, its end is cut and the end token is left out: a cut response must not teach
    where to stop.

    Args:
        rows: what to encode.
        tokenizer: a fast tokenizer with an end token.
        template: wording around instruction and input.
        max_length: the most tokens a row may have.

    Returns:
        The encoded rows, as wide as the longest of them rounded up to a multiple of 8; rows without a
        response token; the ids of rows that were cut.

    Raises:
        InputError: no row is left, or `max_length` leaves no room for a response.
    """
    if max_length < 3:
        raise InputError(
            f"maximum length {max_length} leaves no room for prompt and response; give at least 3 tokens"
        )
    prompts = _tokenise(tokenizer, [template.prompt(row) for row in rows])
    responses = _tokenise(tokenizer, [row.output for row in rows])
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    kept: list[_Fitted] = []
    rejected = []
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        if response and (start or prompt):
            kept.append(_fit(row, start, prompt, response, tokenizer.eos_token_id, max_length))
        else:
            reason = "no response token" if not response else "no prompt token"
            rejected.append(
                Rejected(row, reason, "write text that the tokenizer knows, or use another tokenizer")
            )
    if not kept:
        raise InputError(f"none of {len(rows)} rows has a response token; check the rows and the tokenizer")
    truncated = Truncated(
        tuple(item.row.id for item in kept if item.prompt_cut),
        tuple(item.row.id for item in kept if item.response_cut),
    )
    return Encoding(_padded(kept), tuple(rejected), truncated)


class _Fitted(NamedTuple):
    row: Row
    prompt: list[int]
    response: list[int]
    prompt_cut: bool
    response_cut: bool


def _tokenise(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def _fit(
    row: Row, start: list[int], prompt: list[int], response: list[int], end: int, max_length: int
) -> _Fitted:
    target = [*response, end]
    room = max_length - len(start) - min(len(prompt), 1)
    response_cut = len(target) > room
    if response_cut:
        target = response[:room]
    context = max_length - len(start) - len(target)
    return _Fitted(row, start + prompt[-context:], target, len(prompt) > context, response_cut)


def _padded(kept: list[_Fitted]) -> EncodedRows:
    longest = max(len(item.prompt) + len(item.response) for item in kept)
    width = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    tokens = np.zeros((len(kept), width), np.int32)
    segments = np.zeros((len(kept), width), np.int32)
    loss_mask = np.zeros((len(kept), width), bool)
    for position, item in enumerate(kept):
        length = len(item.prompt) + len(item.response)
        tokens[position, :length] = item.prompt + item.response
        segments[position, :length] = 1
        loss_mask[position, len(item.prompt) : length] = True
    return EncodedRows(tuple(item.row for item in kept), tokens, segments, loss_mask)
