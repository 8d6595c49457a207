"""Answers that a model generates, each kept in a ledger as it comes, so that none is generated twice."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from bilevel.answers import Answer
from bilevel.core.ranges import check_ranges
from bilevel.data import Row
from bilevel.evaluation.kind import Asked, sharded
from bilevel.evaluation.metrics import Columns
from bilevel.schedule.moves import needs
from bilevel.storage import ledger
from bilevel.storage.fingerprint import fingerprint_tree

_AT_ONCE = 8
"""Batches that a model without `generate_each` is asked together: what a killed evaluation generates again at most."""


@dataclass(frozen=True)
class Answering:
    """How answers are generated.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        temperature: 0 takes the most probable token; else tokens are drawn from softmax(logits / temperature).
        top_k: draws among so many most probable tokens; None for all.
        top_p: draws among the fewest most probable tokens that hold this share of the probability.
        stop: texts before which an answer is cut off, besides the model's end token.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or positive"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("stop", all(self.stop), "texts that are not empty"),
        )


def answers_of(
    rows: Sequence[Row], prompts: Sequence[Sequence[int]], answering: Answering, asked: Asked
) -> Columns:
    """Generates an answer to every prompt, but for those that the ledger has.

    A row's key comes from the seed and the row's id alone, so that its answer is the same in any company and order.

    Args:
        rows: where the prompts come from.
        prompts: token ids, a list a row.
        answering: how.
        asked: whom; its ledger is read and added to.

    Returns:
        `response`, texts; `tokens`, how many each has, the end token included; `ended`, 1 where the model ended it.
    """
    model = asked.context.model
    tokenizer = needs(model.tokenizer, "tokenizer", "generation")
    held = {
        "model": fingerprint_tree((asked.params, model.base)),
        "answering": asdict(replace(answering, stop=())),
    }
    keys = [
        ledger.key(held, asked.context.seed, row.id, list(map(int, prompt)))
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    known = {} if asked.ledger is None else asked.ledger.known(keys)
    missing = [number for number, key in enumerate(keys) if key not in known]
    for place, answer in _generated(
        [rows[n] for n in missing], [prompts[n] for n in missing], answering, asked
    ):
        key = keys[missing[place]]
        known[key] = {"tokens": [int(token) for token in answer.tokens], "ended": bool(answer.ended)}
        if asked.ledger is not None:
            asked.ledger.append(key, known[key])
    answers = [known[key] for key in keys]
    texts = [_text(answer, tokenizer, answering.stop) for answer in answers]
    return {
        "response": np.array(texts, dtype=object),
        "tokens": np.array([len(answer["tokens"]) for answer in answers], np.float64),
        "ended": np.array([answer["ended"] for answer in answers], np.float64),
    }


def cut_at(text: str, stop: Sequence[str]) -> str:
    r"""The text up to where the first of several texts begins in it.

    >>> cut_at("4 apples.\\n\\nQuestion: ...", ["Question:", "\\n\\n"])
    '4 apples.'
    """
    return text[: min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))]


def _generated(
    rows: Sequence[Row], prompts: Sequence[Sequence[int]], answering: Answering, asked: Asked
) -> Iterator[tuple[int, Answer]]:
    """Numbers of prompts and their answers as they end, or in order, a few batches at a time."""
    if not prompts:
        return
    context = asked.context
    model, size = context.model, context.layout.rounded(context.evaluation_rows)
    end = model.tokenizer.eos_token_id
    sampling = model.sampling(
        max_new_tokens=answering.max_new_tokens,
        temperature=answering.temperature,
        top_k=answering.top_k,
        top_p=answering.top_p,
        stop_tokens=() if end is None else (end,),
    )
    keys = None
    if answering.temperature > 0:
        numbers = np.array([zlib.crc32(row.id.encode()) for row in rows], np.uint32)
        keys = _row_keys(jax.random.key(context.seed), numbers)
    how = {"batch_rows": size} | sharded(context.layout)
    if model.generate_each is not None:
        for answer in model.generate_each(asked.params, prompts, keys, sampling, **how):
            yield answer
            asked.pause()
        return
    generate = needs(model.generate, "generate", "a task")
    for start in range(0, len(prompts), _AT_ONCE * size):
        asked.pause()
        some = slice(start, start + _AT_ONCE * size)
        own = None if keys is None else keys[some]
        yield from enumerate(generate(asked.params, prompts[some], own, sampling, **how), start)


@jax.jit
def _row_keys(key: Array, numbers: Array) -> Array:
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), 0))(numbers)


def _text(answer: dict[str, Any], tokenizer: Any, stop: Sequence[str]) -> str:
    text = tokenizer.decode(answer["tokens"], skip_special_tokens=True)
    return cut_at(text, stop).strip()
