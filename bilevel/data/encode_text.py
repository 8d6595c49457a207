"""Plain text as token arrays: documents cut into pieces that are all learned, passages whose last word is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from bilevel.data.encode import Encoding, Marked, padded
from bilevel.data.rows import Rejected, Row
from bilevel.data.tokenizer import Tokenizer, start_tokens
from bilevel.data.truncation import Truncated
from bilevel.errors import InputError

_FEWEST_TOKENS = 3


def encode_documents(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> Encoding:
    """Token arrays of documents: [start token] piece, and [end token] after a document's last piece.

    >>> from bilevel.data import train_tokenizer
    >>> document = Row("a:1", "", "", "A cat sat on a mat.", form="text")
    >>> rows = encode_documents([document], train_tokenizer(["a"], 259), max_length=12).encoded
    >>> [(row.id, row.output) for row in rows.rows]
    [('a:1', 'A cat sat '), ('a:1.2', 'on a mat.')]

    A document longer than `max_length` becomes several rows, pieces of nearly equal length, so that nothing is lost
    and no piece is a scrap. The first keeps the document's id, `file:line`; the others add `.2`, `.3` and so on. The
    `output` of a piece is its own text. Every token counts but the first, which nothing predicts.

    Args:
        rows: documents, from `read_documents`.
        tokenizer: a fast tokenizer with an end token.
        max_length: the most tokens a row may have.

    Returns:
        The encoded pieces, in the order of the documents; documents without two tokens as rejected; nothing is
        truncated.

    Raises:
        InputError: no document is left, or `max_length` leaves no room.
    """
    start = start_tokens(tokenizer)
    room = max_length - len(start)
    if room < _FEWEST_TOKENS:
        fewest = len(start) + _FEWEST_TOKENS
        raise InputError(
            f"maximum length {max_length} leaves no room for text; give at least {fewest} tokens"
        )
    kept: list[Marked] = []
    rejected = []
    for row, (ids, offsets) in zip(rows, _tokenise(tokenizer, [row.output for row in rows]), strict=True):
        if not ids:
            rejected.append(Rejected(row, "no token", "write text that the tokenizer knows"))
            continue
        target = [*ids, tokenizer.eos_token_id]
        pieces = -(-len(target) // room)
        bounds = np.linspace(0, len(target), pieces + 1).round().astype(int).tolist()
        for number, (first, end) in enumerate(pairwise(bounds), start=1):
            begin, stop = _characters(offsets, first, end, len(row.output))
            identity = row.id if number == 1 else f"{row.id}.{number}"
            piece = replace(row, id=identity, output=row.output[begin:stop])
            tokens = start + target[first:end]
            kept.append(_last(tokens, piece, len(tokens) - 1))
    if not kept:
        raise InputError(f"none of {len(rows)} documents has a token; check the files and the tokenizer")
    return Encoding(padded(kept), tuple(rejected), Truncated((), ()))


def encode_passages(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> Encoding:
    """Token arrays of passages: [start token] passage word, where only the word's tokens count.

    >>> from bilevel.data import train_tokenizer
    >>> tokenizer = train_tokenizer(["a"], 259)
    >>> passage = Row("a:1", "A cat sat on a", "", "mat", form="passage")
    >>> rows = encode_passages([passage], tokenizer, max_length=32).encoded
    >>> tokenizer.decode(rows.tokens[0][rows.loss_mask[0]])
    ' mat'

    Passage and word are tokenised together, as they stand in running text, and there is no end token. A passage that is
    too long loses its beginning.

    Args:
        rows: passages, from `read_passages`.
        tokenizer: a fast tokenizer.
        max_length: the most tokens a row may have.

    Returns:
        The encoded passages; those whose word leaves no room for a token before it as rejected; the ids of
        passages that were cut.

    Raises:
        InputError: no passage is left.
    """
    start = start_tokens(tokenizer)
    kept: list[Marked] = []
    rejected, cut = [], []
    contexts = [row.instruction.rstrip() for row in rows]
    texts = [f"{context} {row.output}" for context, row in zip(contexts, rows, strict=True)]
    for row, context, (ids, offsets) in zip(rows, contexts, _tokenise(tokenizer, texts), strict=True):
        # A token that reaches across the space between them belongs to the word.
        word = sum(1 for _, end in offsets if end > len(context))
        if word == 0 or len(start) + len(ids) < word + 1 or len(start) + word + 1 > max_length:
            rejected.append(
                Rejected(row, "no room for the last word", "raise the length limit or remove the row")
            )
            continue
        if len(start) + len(ids) > max_length:
            cut.append(row.id)
            ids = ids[len(start) + len(ids) - max_length :]
        kept.append(_last(start + ids, row, word))
    if not kept:
        raise InputError(
            f"none of {len(rows)} passages has a last word that fits; check files and length limit"
        )
    return Encoding(padded(kept), tuple(rejected), Truncated(tuple(cut), ()))


def _last(tokens: list[int], row: Row, counted: int) -> Marked:
    """A row of whose tokens the last `counted` count."""
    return Marked(row, tokens, np.arange(len(tokens)) >= len(tokens) - counted)


def _tokenise(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[list[int], list[Any]]]:
    found = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return list(zip(found["input_ids"], found["offset_mapping"], strict=True))


def _characters(offsets: list[Any], first: int, end: int, length: int) -> tuple[int, int]:
    """Where the text of some tokens begins and ends: each piece up to where the next one begins."""
    begin = offsets[first][0] if first < len(offsets) else length
    return begin if first else 0, offsets[end][0] if end < len(offsets) else length
