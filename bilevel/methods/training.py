"""How the lower level is trained: the settings that every method shares, and the optax chain they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import optax

from bilevel.core.ranges import check_ranges
from bilevel.data import Packing
from bilevel.schedule.batches import BatchPlan


@dataclass(frozen=True)
class TrainingSettings:
    """Fine-tuning settings.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the training rows, instead of steps.
        batch_rows: rows of a lower batch, over all devices and micro-batches.
        upper_rows: rows of an upper batch.
        accumulate: micro-batches that a batch is cut into; gradients are accumulated exactly.
        packing: whether several short rows share a sequence; auto: where that leaves out a tenth of the tokens. Row
            losses must know of it, as those of `bilevel.objectives` do on models that keep segments apart.
        upper_packing: the same of upper batches; by default as packing.
        learning_rate: peak, after warm-up.
        warmup_share: share of the steps over which the learning rate rises from 0.
        final_share: where the cosine ends, as a share of the peak.
        clip: largest global norm of a gradient; 0 for no clipping.
        weight_decay: decoupled.
        beta1: decay of AdamW's first moment.
        beta2: decay of AdamW's second moment.
    """

    steps: int = 1000
    epochs: float | None = None
    batch_rows: int = 32
    upper_rows: int = 32
    accumulate: int = 1
    packing: Packing = "off"
    upper_packing: Packing | None = None
    learning_rate: float = 1e-4
    warmup_share: float = 0.05
    final_share: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("steps", self.steps >= 1, "1 or more"),
            ("epochs", self.epochs is None or self.epochs > 0, "positive"),
            ("learning_rate", self.learning_rate > 0, "positive"),
            ("warmup_share", 0 <= self.warmup_share < 1, "in [0, 1)"),
            ("final_share", 0 <= self.final_share <= 1, "in [0, 1]"),
            ("clip", self.clip >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
        )
        self.plan  # noqa: B018  (checks that the batches can be cut)

    def over(self, rows: int) -> TrainingSettings:
        """The same settings with epochs over so many rows turned into steps."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, math.ceil(self.epochs * rows / self.batch_rows)), epochs=None)

    @property
    def plan(self) -> BatchPlan:
        """How a step's batches are cut."""
        return BatchPlan(
            self.batch_rows,
            self.upper_rows,
            self.accumulate,
            packing=self.packing,
            upper_packing=self.upper_packing,
        )

    def optimizer(self) -> optax.GradientTransformation:
        """Clipping, AdamW, linear warm-up and cosine decay, as one chain with a derivative."""
        warmup = round(self.warmup_share * self.steps)
        rate = optax.warmup_cosine_decay_schedule(
            init_value=self.learning_rate / (warmup + 1),
            peak_value=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(self.steps, warmup + 1),
            end_value=self.final_share * self.learning_rate,
        )
        clip = [optax.clip_by_global_norm(self.clip)] if self.clip > 0 else []
        return optax.chain(*clip, optax.adamw(rate, self.beta1, self.beta2, weight_decay=self.weight_decay))
