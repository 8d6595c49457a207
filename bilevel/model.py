"""What a run asks of a model: pure functions of what is trained, in one bundle."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from bilevel.answers import Generate, GenerateEach, Sampling, ScoreChoices
from bilevel.core.losses import RowLosses
from bilevel.core.problem import Batch, OutputLoss
from bilevel.core.tree import PyTree
from bilevel.data import Row
from bilevel.errors import InputError
from bilevel.objectives.sft import (
    Scores,
    exact_matches,
    response_losses,
    response_losses_of_logits,
    row_vectors,
)
from bilevel.objectives.token_scores import TokenScores, scores_of_logits
from bilevel.objectives.user import ObjectiveModel
from bilevel.storage.fingerprint import fingerprint_tree

RowLoss = Callable[[PyTree, Batch], RowLosses]
_AT_ONCE = 4096


def _absent(params: PyTree, batch: Batch) -> RowLosses:
    """Stands where a model says nothing of rows: that of a general problem, whose two functions say all."""
    raise InputError("this model has no row losses: give Model(row_losses=...)")


@dataclass(frozen=True, eq=False)
class Model:
    """A model as the functions that runs, methods and measures call; each may be absent where nobody calls it.

    Rows that are no text need `row_losses` and `params` alone:

        Model(row_losses=lambda params, batch: RowLosses(...), params=params)

    Text models come from `as_model(models.load(...))`, and from `Model.from_logits` for a module of one's own.

    Attributes:
        row_losses: `(params, batch) -> RowLosses`, with every derivative; an `OutputLoss` allows Gauss-Newton products.
        params: what training starts from, a tree that these functions alone look into.
        base: what these functions hold besides and nobody trains: the frozen parameters under an adapter.
        first_order: the same as `row_losses` with values and gradients alone, by faster kernels; where there are none,
            it is `row_losses` itself.
        evaluate: `(params, batch) -> (RowLosses, matches)`: whether every response token of a row is the argmax.
        token_scores: `(params, batch) -> TokenScores` of all tokens, with every derivative.
        first_order_scores: the same with values and gradients alone; None where `token_scores` serves.
        logits: `(params, batch) -> [sequences, tokens, vocabulary]`, float32, of the token after each, all at once.
        embed: `(params, batch) -> [rows, width]`, a vector a row: of text the mean of its tokens' last hidden states.
        generate: `(params, prompts, keys, sampling) -> answers`, one a prompt; see `bilevel.answers.Generate`.
        generate_each: the same as an iterator of `(number of the prompt, answer)`, as they end.
        sampling: from `max_new_tokens`, `temperature`, `top_k`, `top_p` and `stop_tokens` to what `generate` is told.
        choices: `(params, prompts, continuations) -> scores`: how likely each prompt's continuations are; see
            `bilevel.answers.ScoreChoices`.
        write: `(folder, params, tokenizer=None)`, leaves files that others load.
        tokenizer: the model's own, or None.
        vocabulary: how many tokens the model knows; None where only its logits tell.
        packs: whether several rows may stand in one sequence: whether the model keeps segments apart.
        described: one line for the user on what is trained, "" for all parameters.
        config: the architecture, whatever describes it.
    """

    row_losses: RowLoss = _absent
    params: PyTree = None
    base: PyTree = None
    first_order: RowLoss = _absent
    evaluate: Callable[[PyTree, Batch], tuple[RowLosses, Bool[Array, " rows"]]] | None = None
    token_scores: Scores | None = None
    first_order_scores: Scores | None = None
    logits: Callable[[PyTree, Batch], Float[Array, "sequences tokens vocabulary"]] | None = None
    embed: Callable[..., Any] | None = None
    generate: Generate | None = None
    generate_each: GenerateEach | None = None
    sampling: Callable[..., Any] = Sampling
    choices: ScoreChoices | None = None
    write: Callable[..., None] | None = None
    tokenizer: Any = None
    vocabulary: int | None = None
    packs: bool = True
    described: str = ""
    config: Any = None

    def __post_init__(self) -> None:
        if self.first_order is _absent:
            # One object where there is one path, so that it is compiled once.
            object.__setattr__(self, "first_order", self.row_losses)

    @classmethod
    def from_logits(cls, logits: Callable[..., Array], params: PyTree, tokenizer: Any = None) -> Model:
        """A text model from any function of parameters and tokens, a Flax module's `apply` for one.

            flax = models.from_nnx(MyDecoder(rngs=nnx.Rngs(0)))
            model = Model.from_logits(flax.apply, flax.init())

        Args:
            logits: `(params, tokens) -> [sequences, tokens, vocabulary]`, of the token after each. It must not look
                ahead, since rows are padded at their ends. One that has an argument named `segments` gets them by
                name, [sequences, tokens], 0 for padding: rows may then be packed, and it must keep them apart.
            params: what training starts from.
            tokenizer: the model's, if rows are to be read as text.
        """
        packs = "segments" in inspect.signature(logits).parameters

        def of_batch(params: PyTree, batch: Batch) -> Array:
            return logits(params, batch["tokens"], **({"segments": batch["segments"]} if packs else {}))

        def token_scores(params: PyTree, batch: Batch) -> TokenScores:
            return scores_of_logits(of_batch(params, batch), batch)

        return _of_scores(token_scores, params=params, logits=of_batch, tokenizer=tokenizer, packs=packs)

    @property
    def says_losses(self) -> bool:
        """Whether rows have losses under this model: all but general problems ask for them."""
        return self.row_losses is not _absent

    @cached_property
    def output_losses(self) -> OutputLoss | None:
        """`row_losses` with the model's outputs in sight, for Gauss-Newton products; None where they are not known.

        A text model's outputs are its logits, all at once.
        """
        if isinstance(self.row_losses, OutputLoss):
            return self.row_losses
        return None if self.logits is None else response_losses_of_logits(self.logits)

    def for_objective(self, rows: Sequence[Row]) -> ObjectiveModel:
        """What an upper objective of the user's own may ask about these trusted rows, with values and gradients."""
        if self.token_scores is None or self.logits is None:
            raise InputError(
                "an upper objective by name is for text models: give the method a function of rows"
            )
        scores = self.token_scores if self.first_order_scores is None else self.first_order_scores
        return ObjectiveModel(self.first_order, scores, self.logits, self.config, self.tokenizer, tuple(rows))

    def fingerprint(self, params: PyTree) -> str:
        """A fingerprint of parameters: paths, shapes, types and every bit of their values."""
        return fingerprint_tree(params)


def as_model(given: Any) -> Model:
    """A model as the bundle that runs take. Call it once: each call makes functions that are compiled anew.

    Args:
        given: a `Model`, which stays as it is, or anything with `params` and `token_scores(params, batch)`, such as
            `models.load(...)` returns; its `first_order_scores`, `logits`, `generate`, `generate_each`, `sampling`,
            `choices`, `write`, `tokenizer`, `config` and `described` are taken where it has them, and `embed` from its
            `hidden(params, batch)`.

    Raises:
        InputError: anything else.
    """
    if isinstance(given, Model):
        return given
    if not hasattr(given, "token_scores") or not hasattr(given, "params"):
        raise InputError(
            f"{type(given).__name__} is no model: give models.load(...), bilevel.Model.from_logits(...) or "
            "bilevel.Model(row_losses=..., params=...)"
        )
    config, hidden = getattr(given, "config", None), getattr(given, "hidden", None)
    return _of_scores(
        given.token_scores,
        getattr(given, "first_order_scores", None),
        params=given.params,
        base=getattr(given, "base", None),
        logits=getattr(given, "logits", None),
        embed=None if hidden is None else row_vectors(hidden),
        generate=getattr(given, "generate", None),
        generate_each=getattr(given, "generate_each", None),
        sampling=getattr(given, "sampling", Sampling),
        choices=getattr(given, "choices", None),
        write=getattr(given, "write", None),
        tokenizer=getattr(given, "tokenizer", None),
        vocabulary=getattr(config, "vocab_size", None),
        described=getattr(given, "described", ""),
        config=config,
    )


def token_count(model: Model) -> int:
    """How many rows an embedding of a text model's tokens needs: as many as its tokenizer, or its vocabulary, has.

    Raises:
        InputError: the model knows of no tokens.
    """
    if model.tokenizer is not None:
        return vocabulary_of(model.tokenizer)
    if model.vocabulary is None:
        raise InputError("this model says nothing of its tokens: give Model(..., vocabulary=) or a tokenizer")
    return model.vocabulary


def vocabulary_of(tokenizer: Any) -> int:
    """How many rows an embedding of a tokenizer's tokens needs."""
    return max(tokenizer.get_vocab().values()) + 1


@runtime_checkable
class Rows(Protocol):
    """What `check_tokens` reads of a data set."""

    def __len__(self) -> int: ...

    def batch(self, ids: Any) -> Batch:
        """Arrays of the rows with these numbers."""
        ...

    def names(self, ids: Any) -> list[str]:
        """What a user calls these rows."""
        ...


def check_tokens(model: Model, rows: Rows) -> None:
    """Raises where a row holds a token that the model does not know; looks at nothing for rows that are no text.

    Raises:
        InputError: the first such row, with its token.
    """
    vocabulary = model.vocabulary
    for start in range(0, len(rows), _AT_ONCE):
        ids = np.arange(start, min(start + _AT_ONCE, len(rows)))
        batch = rows.batch(ids)
        if "tokens" not in batch or (vocabulary is None and model.logits is None):
            return
        if vocabulary is None:
            vocabulary = _vocabulary_of_logits(model, batch)
        largest = np.asarray(batch["tokens"]).max(axis=-1)
        if np.any(largest >= vocabulary):
            row = int(np.argmax(largest >= vocabulary))
            raise InputError(
                f"{rows.names(ids[row : row + 1])[0]}: token {largest[row]} is beyond the model's vocabulary of "
                f"{vocabulary}: use the tokenizer that belongs to the model"
            )


def _vocabulary_of_logits(model: Model, batch: Batch) -> int:
    assert model.logits is not None
    one = {name: batch[name][:1] for name in ("tokens", "segments")}
    return jax.eval_shape(model.logits, model.params, one).shape[-1]


def _of_scores(token_scores: Scores, first_order_scores: Scores | None = None, **fields: Any) -> Model:
    row_losses = response_losses(token_scores)
    return Model(
        row_losses,
        first_order=row_losses if first_order_scores is None else response_losses(first_order_scores),
        evaluate=exact_matches(token_scores if first_order_scores is None else first_order_scores),
        token_scores=token_scores,
        first_order_scores=first_order_scores,
        **fields,
    )
