"""A weight network as a few plain settings, from which it can be built again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bilevel.core.problem import Weighting
from bilevel.weighting.network import Form, Scope, Scorer, Signal, added, network
from bilevel.weighting.network_encoder import EncoderSettings, encoder
from bilevel.weighting.network_features import loss_scorer

Reads = Literal["tokens", "loss", "relative_loss", "tokens_and_loss"]


@dataclass(frozen=True)
class NetworkDescription:
    """What a network reads, how large it is, and how its scores become weights.

    Attributes:
        reads: a row's `tokens`, its present `loss` (Meta-Weight-Net), its `relative_loss` among the rows that it
            competes with, or `tokens_and_loss`, the sum of networks of its tokens and of its relative loss.
        encoder: sizes of the transformer that reads tokens.
        form: how a batch shares its weight out.
        temperature: divides the scores.
        floor: smallest weight, in [0, 1).
        scope: over what rows compete.
    """

    reads: Reads = "tokens"
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    form: Form = "softmax"
    temperature: float = 1.0
    floor: float = 0.0
    scope: Scope = "global"

    def scorer(self, vocab_size: int) -> Scorer:
        """The network, for a tokenizer of so many tokens."""
        if self.reads == "loss":
            return loss_scorer()
        if self.reads == "relative_loss":
            return loss_scorer("relative")
        tokens = encoder(vocab_size, self.encoder)
        return tokens if self.reads == "tokens" else added(tokens, loss_scorer("relative"))

    def weighting(self, vocab_size: int, devices: int = 1, signal: Signal = "exact") -> Weighting:
        """The weighting whose outer variables are the network's parameters.

        Args:
            vocab_size: of the tokenizer.
            devices: that share a batch, for scope `device`.
            signal: how a weight's derivative moves the network, where it learns.

        Raises:
            ValueError: for a temperature or floor outside its range.
        """
        return network(
            self.scorer(vocab_size),
            form=self.form,
            signal=signal,
            temperature=self.temperature,
            floor=self.floor,
            scope=self.scope,
            devices=devices,
        )
