"""Tasks of the kind `last_word`: is the word that ends a passage told?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bilevel.data import ReadRows, Row, encode_passages, read_passages
from bilevel.evaluation.kind import Asked, Encoded, Kind, Reading, left_out, too_long
from bilevel.evaluation.metrics import Columns, Metric
from bilevel.evaluation.teacher_forced import teacher_forced


@dataclass(frozen=True)
class LastWord(Kind):
    """LAMBADA's question: the last word of a passage, given all before it.

    With p_i the probability of the word, the product of those of its tokens,

        accuracy    share of passages of which each token of the word is the most probable one: what greedy generation
                    would say
        perplexity  exp(- mean over passages of log p_i), a word

    References:
        Paperno et al., The LAMBADA dataset: word prediction requiring a broad discourse context, 2016.
    """

    name: ClassVar[str] = "last_word"
    needs: ClassVar[tuple[str, ...]] = ("evaluate",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "accuracy", "exact_match", better="higher", share=True, unit="share of passages"),
        Metric("perplexity", "perplexity of the word", "nll", better="lower", exponential=True),
    )

    def read(self, source: str) -> ReadRows:
        """Rows with `context` and `continuation`, or texts whose last word is cut off."""
        return read_passages(source)

    def encode(self, rows: Sequence[Row], reading: Reading) -> Encoded:
        """Passage and word, tokenised together as running text."""
        found = encode_passages(rows, reading.tokenizer, reading.max_length)
        notices = left_out(found.rejected, len(rows), reading.max_rejected)
        cut = found.truncated.prompts
        if cut and reading.too_long == "refuse":
            first = next(row for row in rows if row.id == cut[0])
            whole = encode_passages([first], reading.tokenizer, 2**30).encoded
            raise too_long(first, int(whole.lengths[0]), len(cut) - 1, len(rows), reading)
        if cut:
            notices += (f"{len(cut)} of {len(rows)} passages lost their beginning (first: {cut[0]})",)
        return Encoded(found.encoded.rows, found.encoded, notices)

    def measure(self, encoded: Encoded, asked: Asked) -> Columns:
        """Loss of the word, and whether it is told."""
        found = teacher_forced(encoded.tokens, asked)
        return {name: values for name, values in found.items() if name != "loss"}
