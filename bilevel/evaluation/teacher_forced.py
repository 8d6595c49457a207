"""What a model says of given responses: their loss, and whether it would have said the same, token by token."""

from __future__ import annotations

import numpy as np

from bilevel.data import EncodedRows
from bilevel.evaluation.kind import Asked
from bilevel.evaluation.metrics import Columns
from bilevel.schedule.batches import in_turn
from bilevel.schedule.moves import needs


def teacher_forced(rows: EncodedRows, asked: Asked) -> Columns:
    """Measures each row's response under the true tokens before each of its tokens.

    Args:
        rows: whose loss mask says which tokens count.
        asked: whom.

    Returns:
        `nll`, the sum of -log p over the tokens that count, in nats; `tokens`, how many these are; `loss`, their
        quotient; and `exact_match`, 1 where each of them is the argmax.
    """
    context = asked.context
    evaluate = context.kept.compiled(needs(context.model.evaluate, "evaluate", "a task"))
    found = {name: np.zeros(len(rows)) for name in ("nll", "tokens", "exact_match")}
    size = context.layout.rounded(min(context.evaluation_rows, len(rows)))
    for ids, batch in in_turn(rows, size, context.layout, context.packing):
        asked.pause()
        losses, matched = context.layout.gather(evaluate(asked.params, batch))
        kept = ids >= 0
        for name, values in zip(found, (losses.total, losses.count, matched), strict=True):
            found[name][ids[kept]] = values[kept]
    return {"loss": found["nll"] / np.maximum(found["tokens"], 1), **found}
