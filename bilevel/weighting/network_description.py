"""A weight network as a few plain settings, from which it can be built again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bilevel.core.problem import Weighting
from bilevel.weighting.network import Form, Scope, Scorer, added, network
from bilevel.weighting.network_encoder import EncoderSettings, encoder
from bilevel.weighting.network_features import loss_scorer


@dataclass(frozen=True)
class NetworkDescription:
    """What a network reads, how large it is, and how its scores become weights.

    Attributes:
        reads: a row's `tokens`, its present `loss`, or both.
        encoder: sizes of the transformer that reads tokens.
        form: how a batch shares its weight out.
        temperature: divides the scores.
        floor: smallest weight, in [0, 1).
        scope: over what rows compete.
    """

    reads: Literal["tokens", "loss", "tokens_and_loss"] = "tokens"
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    form: Form = "softmax"
    temperature: float = 1.0
    floor: float = 0.0
    scope: Scope = "global"

    def scorer(self, vocab_size: int) -> Scorer:
        """Returns the network, for a tokenizer of so many tokens."""
        if self.reads == "loss":
            return loss_scorer()
        tokens = encoder(vocab_size, self.encoder)
        return tokens if self.reads == "tokens" else added(tokens, loss_scorer())

    def weighting(self, vocab_size: int, devices: int = 1) -> Weighting:
        """Returns the weighting whose outer variables are the network's parameters.

        Raises:
            InputError: for a temperature or floor outside its range.
        """
        return network(
            self.scorer(vocab_size),
            form=self.form,
            temperature=self.temperature,
            floor=self.floor,
            scope=self.scope,
            devices=devices,
        )
