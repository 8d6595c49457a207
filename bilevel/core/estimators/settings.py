"""Which estimator, and how hard it works: one flat dataclass that a command line can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EstimatorName = Literal["identity", "optimizer_aware", "penalty", "penalty_single"]
"""Every name in the table, spelled out for command lines and type checkers."""


@dataclass(frozen=True)
class EstimatorSettings:
    """How the hypergradient is estimated. An estimator reads what concerns it and leaves the rest.

    Attributes:
        name: which estimator; docs/estimators.md compares them.
        step_size: of the step that `identity` differentiates through; None for 1.
        gamma: weight of the lower level's excess in the penalty forms, unless the method has a schedule of its own.
    """

    name: EstimatorName = "optimizer_aware"
    step_size: float | None = None
    gamma: float = 100.0

    def __post_init__(self) -> None:
        for name, inside, allowed in (
            ("step_size", self.step_size is None or self.step_size > 0, "positive"),
            ("gamma", self.gamma > 0, "positive"),
        ):
            if not inside:
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}")
