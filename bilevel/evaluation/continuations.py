"""How likely continuations of prompts are under a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bilevel.data import EncodedRows, Row
from bilevel.data.encode import Marked, padded
from bilevel.evaluation.kind import Asked, sharded
from bilevel.evaluation.teacher_forced import teacher_forced

_AT_ONCE = 8
"""Batches that are asked for together, between two looks at whether to stop."""


class ContinuationScore(NamedTuple):
    """What a model says of one continuation of one prompt.

    Attributes:
        log_probability: sum over its tokens of their log-probabilities given all before them, in nats.
        tokens: how many it has.
        greedy: whether each of them is the most probable one.
    """

    log_probability: float
    tokens: int
    greedy: bool


def continuation_scores(
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    asked: Asked,
) -> list[list[ContinuationScore]]:
    """Scores every continuation of every prompt.

    A model with `choices` reads a prompt once for all its continuations; for others each continuation is a row of its
    own.

    Args:
        rows: where the prompts come from.
        prompts: token ids, a list a row.
        continuations: token ids of each row's continuations.
        asked: whom.

    Returns:
        For each row the scores of its continuations, in their order.
    """
    context = asked.context
    if context.model.choices is None:
        return _as_rows(rows, prompts, continuations, asked)
    size = context.layout.rounded(context.evaluation_rows)
    how = {"batch_prompts": size} | sharded(context.layout)
    found: list[list[ContinuationScore]] = []
    for start in range(0, len(prompts), _AT_ONCE * size):
        asked.pause()
        some = slice(start, start + _AT_ONCE * size)
        for scores in context.model.choices(asked.params, prompts[some], continuations[some], **how):
            parts = zip(scores.log_likelihoods, scores.lengths, scores.greedy, strict=True)
            found.append([ContinuationScore(float(p), int(n), bool(best)) for p, n, best in parts])
    return found


def _as_rows(
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    asked: Asked,
) -> list[list[ContinuationScore]]:
    marked = [
        Marked(row, [*prompt, *some], np.arange(len(prompt) + len(some)) >= len(prompt))
        for row, prompt, several in zip(rows, prompts, continuations, strict=True)
        for some in several
    ]
    encoded: EncodedRows = padded(marked)
    found = teacher_forced(encoded, asked)
    scores = (
        ContinuationScore(-float(nll), int(tokens), bool(match))
        for nll, tokens, match in zip(found["nll"], found["tokens"], found["exact_match"], strict=True)
    )
    return [[next(scores) for _ in several] for several in continuations]
