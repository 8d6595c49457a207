"""Signals that a model gives: how well it predicts a response, how much the prompt helps, how near prompts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree
from bilevel.curate.nearest import neighbours
from bilevel.curate.ngrams import ngram_diversity
from bilevel.curate.passes import filled, row_digests, row_pass, token_rows
from bilevel.curate.selection import Counted
from bilevel.data import Dataset, EncodedRows
from bilevel.data.parts import prompts, responses, with_and_without_prompt
from bilevel.layout import Layout, data_layout
from bilevel.model import as_model
from bilevel.schedule import Context, Round, RunState, Score, run_schedule
from bilevel.schedule.moves import needs
from bilevel.schedule.score import Asked, Columns, Measure

Ratio = Literal["perplexity", "loss"]
CONDITIONAL, UNCONDITIONAL = "_conditional", "_unconditional"


def measure_rows(
    measure: Measure,
    model: Any,
    rows: Dataset,
    *,
    params: PyTree = None,
    layout: Layout | None = None,
    batch_rows: int = 128,
    folder: Path | None = None,
) -> Mapping[str, Float[np.ndarray, " rows"]]:
    """Measures rows outside of any run: columns by name, "" for the measure itself.

    Args:
        measure: what is measured, such as `complexity()`.
        model: a `Model`, or a language model of `models.load`.
        rows: what to measure, such as `bilevel.data.load(...)["pool"]`.
        params: of the model; by default those that it was loaded with.
        layout: devices that share each batch; by default all.
        batch_rows: rows at a time.
        folder: where values are kept by content, and found again; None for nowhere.
    """
    chosen = as_model(model)
    context = Context(chosen, layout or data_layout(), evaluation_rows=batch_rows)
    state = RunState({"current": chosen.params if params is None else params}, {"pool": rows})
    state = run_schedule((Round((Score("", measure, folder=folder),)),), state, context)
    return {name: state.column(name) for name in measure.columns}


def _response_loss(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Columns:
    rows = token_rows(asked.dataset, "the response loss")
    losses = row_pass(asked, asked.context.model.first_order, rows, filled(asked, ids), "rows")
    return {"": _means(losses)[: len(ids)]}


RESPONSE_LOSS = Measure(
    "response loss",
    _response_loss,
    contents=lambda asked, ids: row_digests(token_rows(asked.dataset, "the response loss"), ids),
)
"""The mean token loss of a row's response, in nats, nan without one: as `ROW_LOSS`, packed and kept by content."""


def complexity(of: Ratio = "perplexity", header: Sequence[int] | None = None) -> Measure:
    """How little a prompt helps with its response: S_COM, the instruction-following difficulty.

        S_COM(i) = exp(l(y | x)) / exp(l(y))        l = mean loss over the tokens of the last response, its end included

    Near 0 the prompt all but says the response; at 1 it does not help; above it misleads. Both losses come from one
    pass over rows and responses packed together, over the same tokens. Without its prompt a response still follows
    what ends every prompt (see `bilevel.data.parts.with_and_without_prompt`).

    The columns are the ratio, `_conditional` and `_unconditional`, the two losses in nats a token. They are nan where a
    row has no response token, or a loss is not finite.

    Args:
        of: `perplexity`, as in the authors' code, or `loss`, l(y | x) / l(y), as Li et al. write it.
        header: tokens that end a prompt; by default what all prompts of the data set end with.

    References:
        Jia et al., Boosting LLM via Learning from Data Iteratively and Selectively, 2024 (arXiv 2412.17365).
        Li et al., From Quantity to Quality, 2024 (arXiv 2308.12032).
    """

    def both(asked: Asked) -> EncodedRows:
        rows = token_rows(asked.dataset, "complexity")

        def made() -> EncodedRows:
            start = getattr(asked.context.model.tokenizer, "bos_token_id", None)
            return with_and_without_prompt(rows, header, start)

        return asked.context.kept.get(("with and without", rows.fingerprint, _named(header)), made)

    def run(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Columns:
        rows, first = both(asked), filled(asked, ids)
        pairs = np.concatenate([first, np.where(first < 0, -1, first + len(asked.dataset))])
        what = ("with and without", _named(header))
        losses = _means(row_pass(asked, asked.context.model.first_order, rows, pairs, what))
        known, alone = losses[: len(ids)], losses[len(first) :][: len(ids)]
        with np.errstate(all="ignore"):
            ratio = np.exp(known - alone) if of == "perplexity" else known / alone
        return {
            name: np.where(np.isfinite(ratio), values, np.nan)
            for name, values in (("", ratio), (CONDITIONAL, known), (UNCONDITIONAL, alone))
        }

    def contents(asked: Asked, ids: Int[np.ndarray, " rows"]) -> list[str]:
        rows = both(asked)
        pair = zip(row_digests(rows, ids), row_digests(rows, ids + len(asked.dataset)), strict=True)
        return [f"{of} {known} {alone}" for known, alone in pair]

    return Measure("complexity", run, ("", CONDITIONAL, UNCONDITIONAL), contents=contents)


def prompt_embeddings(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows width"]:
    """The mean of the model's last hidden states over each prompt's tokens, in float32; no vocabulary is looked at.

    The prompt is all that stands before the last response, as the model reads it. Embeddings are kept by content,
    piece by piece, where the run keeps what it measures.

    Raises:
        InputError: the model has no `embed`, as those that are made of logits alone.
    """
    context = asked.context
    embed = needs(context.model.embed, "embed, a vector for each row", "a prompt's embedding")
    rows = token_rows(asked.dataset, "an embedding")
    asks = context.kept.get(("prompts", rows.fingerprint), lambda: prompts(rows))
    size = context.layout.rounded(context.evaluation_rows)

    def vectors(places: Int[np.ndarray, " piece"]) -> Float[np.ndarray, "piece width"]:
        found = row_pass(asked, embed, asks, filled(asked, ids[places]), "prompts")
        return np.asarray(found)[: len(places)]

    if asked.measured is not None:
        return asked.measured.all_of(row_digests(asks, ids), size, vectors)
    places = np.arange(len(ids))
    return np.concatenate([vectors(places[start : start + size]) for start in range(0, len(ids), size)])


def neighbour_similarity(k: int = 2) -> Measure:
    """How near a row's prompt is to its nearest neighbours: the mean cosine to k of them, low in sparse regions.

    The columns are the mean and `_neighbour_1` .. `_neighbour_k`, the neighbours' row ids, nearest first.

    Args:
        k: neighbours.

    References:
        Tang et al., Middo: Model-Informed Dynamic Data Optimization, 2025 (arXiv 2508.21589).
    """
    check_ranges({"k": k}, ("k", k >= 1, "1 or more"))
    names = tuple(f"_neighbour_{number}" for number in range(1, k + 1))

    def run(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Columns:
        found = neighbours(prompt_embeddings(asked, ids), k, asked.context.layout)
        nearest = dict(zip(names, ids[found.ids].T.astype(np.float32), strict=True))
        return {"": np.mean(found.similarity, axis=1), **nearest}

    # A row's own value depends on all others; its embedding does not.
    return Measure("prompt embedding", run, ("", *names), whole=True, contents=lambda asked, ids: [])


def ngrams(size: int = 3, of: Counted = "words") -> Measure:
    """How varied responses are: columns `_distinct`, within a row, and `_own`, against all others.

    Args:
        size: of an n-gram.
        of: words of the response's text, or tokens of the response.
    """

    def run(asked: Asked, ids: Int[np.ndarray, " rows"]) -> Columns:
        rows = token_rows(asked.dataset, "n-gram diversity")
        first, end = responses(rows)
        found = ngram_diversity(
            [rows.rows[row].output for row in ids]
            if of == "words"
            else [rows.tokens[row, first[row] : end[row]].tolist() for row in ids],
            size,
        )
        return {"_distinct": found.distinct, "_own": found.own}

    return Measure("n-gram diversity", run, ("_distinct", "_own"), whole=True)


def _means(losses: Any) -> Float[np.ndarray, " rows"]:
    """Mean token losses, nan for rows without a response token: 0 would read as a perfect prediction."""
    total, count = (np.asarray(values, np.float64) for values in (losses.total, losses.count))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def _named(header: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if header is None else tuple(header)
