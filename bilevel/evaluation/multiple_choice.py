"""Tasks of the kind `multiple_choice`: which of several continuations a model finds most likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bilevel.data import ReadRows, Row
from bilevel.data.sources import open_source
from bilevel.data.texts import text_cell
from bilevel.data.tokenizer import start_tokens, tokenise
from bilevel.errors import InputError
from bilevel.evaluation.continuations import continuation_scores
from bilevel.evaluation.kind import Asked, Encoded, Kind, Reading
from bilevel.evaluation.metrics import Columns, Metric
from bilevel.evaluation.prompts import fitted
from bilevel.model import Model
from bilevel.schedule.moves import needs

QUESTIONS = ("query", "question", "prompt")
CHOICES = "choices"
GOLD = ("gold", "answer", "label")


class Choices(NamedTuple):
    """The tokens of a task's questions.

    Attributes:
        prompts: one a row.
        continuations: those of each row's choices.
    """

    prompts: list[list[int]]
    continuations: list[list[list[int]]]


@dataclass(frozen=True)
class MultipleChoice(Kind):
    r"""The most likely of a question's choices, by four measures of likelihood.

    The model reads [start token] question delimiter choice as plain text, without a template; trailing blanks of the
    delimiter belong to the choice's tokens. With log p_k the sum over the choice's tokens of their log-probabilities
    given all tokens before them, the answer is the first k that maximises

        accuracy            log p_k                              `acc` of lm-evaluation-harness
        per character       log p_k / characters of choice k     its `acc_norm`
        per byte            log p_k / bytes of choice k in UTF-8
        per token           log p_k / tokens of choice k

    where characters and bytes are those of the choice's own text, the delimiter's blank left out.

    Attributes:
        delimiter: what stands between question and choice.
    """

    delimiter: str = "\nAnswer: "

    name: ClassVar[str] = "multiple_choice"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "accuracy_norm",
            "accuracy by likelihood per character",
            "correct_norm",
            better="higher",
            share=True,
            unit="share of questions",
        ),
        Metric("accuracy", "accuracy by likelihood", "correct", better="higher", share=True),
        Metric(
            "accuracy_bytes", "accuracy per byte", "correct_bytes", better="higher", share=True, main=False
        ),
        Metric(
            "accuracy_tokens", "accuracy per token", "correct_tokens", better="higher", share=True, main=False
        ),
    )

    def check(self, model: Model) -> None:
        """Raises where a model can neither score choices nor evaluate rows."""
        if model.choices is None:
            needs(model.evaluate, "choices", f"a task of the kind {self.name}")

    def read(self, source: str) -> ReadRows:
        """Rows with `query`, `choices` (a list of texts) and `gold` (the number of the right one, from 0)."""
        found = open_source(source, ("test", "validation"))
        rows = tuple(
            _row(f"{found.place}:{number}", f"{found.name}:{number}", record)
            for number, record in found.records
        )
        if not rows:
            raise InputError(
                f"{found.place}: no rows inside; write at least one with 'query', 'choices', 'gold'"
            )
        return ReadRows(rows, (), (f"{found.name}: {len(rows)} questions",))

    def encode(self, rows: Sequence[Row], reading: Reading) -> Encoded:
        """Questions with their delimiter, and what each choice adds."""
        gap = self.delimiter[len(self.delimiter.rstrip()) :]
        contexts = [row.instruction + self.delimiter.removesuffix(gap) for row in rows]
        start = start_tokens(reading.tokenizer)
        before = tokenise(reading.tokenizer, contexts)
        wholes = iter(
            tokenise(
                reading.tokenizer,
                [
                    f"{context}{gap}{choice}"
                    for context, row in zip(contexts, rows, strict=True)
                    for choice in row.extra[CHOICES]
                ],
            )
        )
        # A choice's tokens are those that it adds to the prompt's, as in lm-evaluation-harness.
        continuations = [
            [next(wholes)[len(prompt) :] for _ in row.extra[CHOICES]]
            for prompt, row in zip(before, rows, strict=True)
        ]
        for row, found in zip(rows, continuations, strict=True):
            if not all(found):
                raise InputError(
                    f"{row.id}: choice {found.index([])} adds no token to its question; write it otherwise"
                )
        rooms = [max(map(len, found)) for found in continuations]
        prompts, cut = fitted(rows, [start + prompt for prompt in before], rooms, reading)
        chance = float(np.mean([1 / len(row.extra[CHOICES]) for row in rows]))
        said = f"guessing gets {chance:.3f} of these questions right"
        return Encoded(tuple(rows), Choices(prompts, continuations), (said, cut) if cut else (said,))

    def measure(self, encoded: Encoded, asked: Asked) -> Columns:
        """The choice that each likelihood prefers, and whether it is the right one."""
        tokens: Choices = encoded.tokens
        scores = continuation_scores(encoded.rows, tokens.prompts, tokens.continuations, asked)
        columns: dict[str, list[Any]] = {}
        for row, found in zip(encoded.rows, scores, strict=True):
            likelihoods = np.array([score.log_probability for score in found])
            choices, gold = row.extra[CHOICES], row.extra[GOLD[0]]
            lengths = {
                "": np.ones(len(choices)),
                "_norm": np.array([len(choice) for choice in choices]),
                "_bytes": np.array([len(choice.encode()) for choice in choices]),
                "_tokens": np.array([score.tokens for score in found]),
            }
            for name, length in lengths.items():
                chosen = int(np.argmax(likelihoods / length))
                columns.setdefault(f"correct{name}", []).append(float(chosen == gold))
                columns.setdefault(f"chosen{name}", []).append(chosen)
            columns.setdefault("gold", []).append(gold)
            columns.setdefault("log_probability", []).append(likelihoods[gold])
        return {name: np.array(values) for name, values in columns.items()}


def _row(place: str, identity: str, record: Any) -> Row:
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: a row must be a JSON object, this is {type(record).__name__}; write one")
    question, gold = (_column(place, names, record) for names in (QUESTIONS, GOLD))
    choices = record[_column(place, (CHOICES,), record)]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"{place}: column {CHOICES!r} must be a list of texts; write one")
    if len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise InputError(f"{place}: column {CHOICES!r} must hold two texts or more, none of them empty")
    right = record[gold]
    if not isinstance(right, int) or isinstance(right, bool):
        raise InputError(
            f"{place}: column {gold!r} must be the number of the right choice, from 0, not {right!r}"
        )
    if not 0 <= right < len(choices):
        raise InputError(
            f"{place}: {gold} {right} is out of range: there are {len(choices)} choices, numbered from 0 to "
            f"{len(choices) - 1}"
        )
    text = text_cell(place, question, record[question])
    if not text.strip():
        raise InputError(f"{place}: column {question!r} is empty; write the question or remove the row")
    others = {name: value for name, value in record.items() if name not in (question, gold, CHOICES)}
    return Row(identity, text, "", choices[right], extra={**others, CHOICES: choices, GOLD[0]: right})


def _column(place: str, names: Sequence[str], record: Mapping[str, Any]) -> str:
    for name in names:
        if name in record:
            return name
    there = ", ".join(map(repr, record)) or "none"
    raise InputError(f"{place}: column {names[0]!r} is missing (there: {there}); add it, or rename yours")
