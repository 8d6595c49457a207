"""How hard an estimator works: one flat dataclass that a command line can show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bilevel.core.ranges import check_ranges


@dataclass(frozen=True)
class AnySettings:
    """Settings of any estimator; what each reads stands in its row of the table, see `EstimatorSettings`.

    Attributes:
        name: which estimator.
        iterations: products with the second derivative that `conjugate_gradient`, `neumann` and `amigo` spend.
        tolerance: relative residual at which `conjugate_gradient` stops early.
        curvature: which second derivative the implicit rules invert; `gauss_newton` is never negative.
        damping: added to its eigenvalues.
        relative_damping: the same, as a share of the largest eigenvalue; `nystrom` takes 0.01 where neither is given.
        rank: sketched directions of `nystrom`.
        warm_start: whether `conjugate_gradient` and `neumann` begin at the last step's direction.
        reuse: whether to linearise once. Solves of a linear system are then faster, at 2 to 2.7 times the memory, and
            keep to less memory by default; `identity` and `optimizer_aware` share the lower step's forward pass, and do
            so by default.
        step_size: of the step that `identity` differentiates through, None for 1; of the steps of `neumann`, `amigo`
            and `soba` on the linear system, None for 1 / (estimate of the largest eigenvalue).
        mode: how `unroll` differentiates: all modes agree; `forward` for few outer variables over many steps.
        last_steps: how many lower steps `unroll` differentiates through, counted from the last; None for all.
        segment: lower steps that `whole_run` holds at once; None for the square root of them.
        gamma: weight of the lower level's excess in the penalty forms, unless the method has a schedule of its own.
        eta: share of the excess's own steepest descent that `bome` insists on.
        samples: directions of `evolution_strategies` and `pzobo`.
        radius: length of their differences, in each outer variable's own unit.
    """

    name: str = "optimizer_aware"
    iterations: int = 10
    tolerance: float = 0.0
    curvature: Literal["hessian", "gauss_newton"] = "hessian"
    damping: float = 0.0
    relative_damping: float = 0.0
    rank: int = 10
    warm_start: bool = False
    reuse: bool | None = None
    step_size: float | None = None
    mode: Literal["mixed", "reverse", "forward"] = "mixed"
    last_steps: int | None = None
    segment: int | None = None
    gamma: float = 100.0
    eta: float = 0.5
    samples: int = 8
    radius: float = 1e-2

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("iterations", self.iterations >= 1, "at least 1"),
            ("tolerance", 0 <= self.tolerance < 1, "in [0, 1)"),
            ("damping", self.damping >= 0, "0 or more"),
            ("relative_damping", self.relative_damping >= 0, "0 or more"),
            ("rank", self.rank >= 1, "at least 1"),
            ("step_size", self.step_size is None or self.step_size > 0, "positive"),
            ("last_steps", self.last_steps is None or self.last_steps >= 1, "at least 1"),
            ("segment", self.segment is None or self.segment >= 1, "at least 1"),
            ("gamma", self.gamma > 0, "positive"),
            ("eta", 0 < self.eta <= 1, "in (0, 1]"),
            ("samples", self.samples >= 1, "at least 1"),
            ("radius", self.radius > 0, "positive"),
        )
