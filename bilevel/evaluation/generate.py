"""Tasks of the kind `generate`: does a model write the expected answer?"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from bilevel.data import ReadRows, Row, read_rows
from bilevel.evaluation.answers import Answering, answers_of
from bilevel.evaluation.kind import Asked, Encoded, Kind, Reading
from bilevel.evaluation.metrics import Columns, Metric
from bilevel.evaluation.prompts import prompts_of

Normalisation = Literal["blanks", "squad"]
"""What makes two answers the same; see `NORMALISATIONS`."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def blanks(text: str) -> str:
    r"""A text in Unicode's composed form, without outer blanks, each run of blanks as one space.

    >>> blanks("  4 \n apples")
    '4 apples'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def squad(text: str) -> str:
    """A text in lower case, without ASCII punctuation and the articles a, an, the; then as `blanks`.

    >>> squad("The answer: 4 apples.")
    'answer 4 apples'

    References:
        The evaluation script of SQuAD (Rajpurkar et al., 2016).
    """
    return blanks(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


NORMALISATIONS: Mapping[Normalisation, Callable[[str], str]] = {"blanks": blanks, "squad": squad}


@dataclass(frozen=True)
class Generate(Kind):
    """The share of rows whose generated answer is the expected one, once both are normalised.

    Attributes:
        answering: how answers are generated.
        normalise: `blanks` compares texts but for blanks; `squad` drops case, punctuation and articles too, and with
            them a decimal point.
    """

    answering: Answering = field(default_factory=Answering)
    normalise: Normalisation = "blanks"

    name: ClassVar[str] = "generate"
    needs: ClassVar[tuple[str, ...]] = ("generate", "tokenizer")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "exact_match",
            "exact match of generated answers",
            "exact_match",
            better="higher",
            share=True,
            unit="share of rows",
        ),
        Metric("ended", "ended by itself", "ended", share=True, main=False),
        Metric("tokens", "tokens an answer", "tokens", main=False, digits=1),
    )

    def read(self, source: str) -> ReadRows:
        """Rows in any form that `bilevel.data.read_rows` knows; the response is what is expected."""
        return read_rows(source, ("test",))

    def encode(self, rows: Sequence[Row], reading: Reading) -> Encoded:
        """Prompts in the template's wording."""
        return prompts_of(rows, reading, self.answering.max_new_tokens)

    def measure(self, encoded: Encoded, asked: Asked) -> Columns:
        """Answers, and whether they are as expected."""
        found = answers_of(encoded.rows, encoded.tokens, self.answering, asked)
        same = NORMALISATIONS[self.normalise]
        matches = [
            same(text) == same(row.output) for text, row in zip(found["response"], encoded.rows, strict=True)
        ]
        expected = np.array([row.output for row in encoded.rows], dtype=object)
        return {"exact_match": np.array(matches, np.float64), **found, "expected": expected}
