"""Tasks of the kind `loss`: how well the responses of rows are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from bilevel.data import ReadRows, Row, encode_rows, read_rows
from bilevel.evaluation.kind import Asked, Encoded, Kind, Reading, left_out, too_long
from bilevel.evaluation.metrics import Columns, Metric
from bilevel.evaluation.prompts import length_of, template_of
from bilevel.evaluation.teacher_forced import teacher_forced


@dataclass(frozen=True)
class Loss(Kind):
    """Loss, perplexity and exact match of given responses, their end tokens included.

    With n_i tokens that count in row i, and p their probabilities given the true tokens before them,

        loss        mean over rows of -1/n_i sum_t log p_it, in nats a token
        perplexity  exp(- sum_it log p_it / sum_i n_i)
        exact match share of rows of which every token is the most probable one
    """

    name: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("evaluate",)
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "loss", "loss", better="lower", unit="nats a token"),
        Metric("perplexity", "perplexity", "nll", "tokens", better="lower", exponential=True, main=False),
        Metric(
            "exact_match", "exact match", "exact_match", better="higher", share=True, unit="share of rows"
        ),
    )

    def read(self, source: str) -> ReadRows:
        """Rows in any form that `bilevel.data.read_rows` knows, or of a dataset its split `test`."""
        return read_rows(source, ("test",))

    def encode(self, rows: Sequence[Row], reading: Reading) -> Encoded:
        """Prompts and responses in the template's wording."""
        template, chosen = template_of(rows, reading)
        # What does not fit is known only once everything is encoded.
        found = encode_rows(rows, reading.tokenizer, template, reading.max_length, targets="last")
        said = left_out(found.rejected, len(rows), reading.max_rejected)
        cut = dict.fromkeys((*found.truncated.prompts, *found.truncated.responses))
        if cut and reading.too_long == "refuse":
            by_id = {row.id: row for row in rows}
            first = by_id[next(iter(cut))]
            raise too_long(first, length_of(first, template, reading), len(cut) - 1, len(rows), reading)
        notices = (chosen, *said, found.truncated.warning)
        return Encoded(found.encoded.rows, found.encoded, tuple(line for line in notices if line))

    def measure(self, encoded: Encoded, asked: Asked) -> Columns:
        """Losses and matches of all rows."""
        return teacher_forced(encoded.tokens, asked)
