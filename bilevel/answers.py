"""What a model says when it is asked: answers to prompts, and how likely it finds given continuations.

Whatever fits these descriptions will do: `models.load(...)` brings them, and so may a server of one's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from bilevel.core.tree import PyTree

Tokens = Sequence[int] | Int[np.ndarray, " tokens"]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, as a `generate` of one's own is told; `models.Sampling` is the same for our models.

    Attributes:
        max_new_tokens: how many tokens an answer has at most, the stop token included.
        temperature: scores are divided by it before the softmax; 0 takes the argmax.
        top_k: draws among so many most probable tokens; None for all.
        top_p: draws among the fewest most probable tokens that hold this share of the probability.
        stop_tokens: each ends an answer, and is its last token.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()


@runtime_checkable
class Answer(Protocol):
    """What was generated after one prompt.

    Attributes:
        tokens: the exact ids, without the prompt; a stop token that came is the last of them.
        behaviour: log-probability of each under the distribution that it was drawn from: after temperature and
            truncation. A greedy token is drawn with certainty: 0.
        policy: log-probability of each under the model itself, at temperature 1, over the whole vocabulary.
        ended: whether the model ended the answer by a stop token; otherwise it was cut.
    """

    @property
    def tokens(self) -> Int[np.ndarray, " tokens"]: ...
    @property
    def behaviour(self) -> Float[np.ndarray, " tokens"]: ...
    @property
    def policy(self) -> Float[np.ndarray, " tokens"]: ...
    @property
    def ended(self) -> bool: ...


@runtime_checkable
class ChoiceScores(Protocol):
    """What a model says of the continuations of one prompt.

    Attributes:
        log_likelihoods: log p(continuation | prompt), the sum over its tokens, in nats.
        lengths: how many tokens each has.
        greedy: whether each of its tokens is the most probable one.
    """

    @property
    def log_likelihoods(self) -> Float[np.ndarray, " choices"]: ...
    @property
    def lengths(self) -> Int[np.ndarray, " choices"]: ...
    @property
    def greedy(self) -> Bool[np.ndarray, " choices"]: ...


@runtime_checkable
class Generate(Protocol):
    """Answers prompts of any lengths, in their order."""

    def __call__(
        self, params: PyTree, prompts: Sequence[Tokens], keys: Any, sampling: Any, **how: Any
    ) -> Sequence[Answer]:
        """An answer a prompt.

        Args:
            params: what is trained.
            prompts: token ids.
            keys: one a prompt, `models.row_keys(key, ids, draw)`; None where nothing is drawn.
            sampling: `models.Sampling(max_new_tokens, temperature, top_k, top_p, stop_tokens)`.
            **how: what the model takes besides: `limits`, `batch_rows`, `sharding`.
        """
        ...


@runtime_checkable
class GenerateEach(Protocol):
    """Answers prompts of any lengths, each as soon as it has ended, with its number."""

    def __call__(
        self, params: PyTree, prompts: Sequence[Tokens], keys: Any, sampling: Any, **how: Any
    ) -> Iterator[tuple[int, Answer]]:
        """Arguments as for `Generate`."""
        ...


@runtime_checkable
class ScoreChoices(Protocol):
    """Scores continuations of prompts, each prompt read once."""

    def __call__(
        self,
        params: PyTree,
        prompts: Sequence[Tokens],
        continuations: Sequence[Sequence[Tokens]],
        **how: Any,
    ) -> Sequence[ChoiceScores]:
        """The scores of each prompt's continuations, in the order of the prompts.

        Args:
            params: what is trained.
            prompts: token ids.
            continuations: for each prompt, token ids of its continuations.
            **how: what the model takes besides: `batch_prompts`, `sharding`.
        """
        ...
