"""What a check of a hypergradient found, and what that means in words."""

from __future__ import annotations

from typing import NamedTuple

from bilevel.core.reference import Reference
from bilevel.core.tree import PyTree

ACCURATE, CLOSE = 0.01, 0.1
"""Relative errors up to which an estimate is called accurate, or close."""
ALIGNED, ROUGH = 0.9, 0.5
"""Cosines from which only the length is wrong, or the direction is roughly right."""
LARGE = 0.1
"""Of stationarity, residual and bias: what comes to matter."""


class HypergradientCheck(NamedTuple):
    """What `check_hypergradient` found. Printing it gives the verdict, the numbers and the advice.

    Attributes:
        estimate: the outer gradient that was checked, without an outer penalty's.
        family: of the estimator in the table; None for one of the user's own.
        descends: what the estimator descends, where that is not the upper loss after training; else "".
        cosine: of the angle between estimate and reference.
        relative_error: |estimate - reference| / |reference|.
        finite: whether the estimate is.
        reference: what it was compared with.
        horizon: steps that the reference looks ahead; None for the optimum.
        stationarity: |grad_inner lower| / |grad_inner upper| where the estimate was made.
        curvature: smallest curvature that was seen, damping excluded; None where nobody looked.
        residual: of the estimator's linear system; None where it has none.
        damping: of that system; None where it has none.
        convergence_error: relative error that the exact implicit formula makes where the estimate was made, because the
            lower level is not at its optimum there; None where it was not computed.
    """

    estimate: PyTree
    family: str | None
    descends: str
    cosine: float
    relative_error: float
    finite: bool
    reference: Reference
    horizon: int | None
    stationarity: float
    curvature: float | None
    residual: float | None
    damping: float | None
    convergence_error: float | None

    @property
    def verdict(self) -> str:
        """One sentence on how far the estimate can be trusted."""
        if not self.finite:
            return "Not finite: the estimate holds NaN or infinity."
        if self.descends:
            return f"No hypergradient: it descends {self.descends}."
        if not self._has_reference:
            return (
                "Undecided: the lower level has no minimum within reach, so there is nothing to compare with."
            )
        if not self.reference.uncertainty < float("inf"):
            return "Undecided: the upper loss does not change with the outer variables."
        if self.reference.uncertainty > LARGE:
            return f"Undecided: the reference itself is only known to {self.reference.uncertainty:.0%}."
        if self.relative_error <= max(ACCURATE, 2 * self.reference.uncertainty):
            return "Accurate: direction and length agree with the reference."
        if self.relative_error <= CLOSE:
            return f"Close: off by {self.relative_error:.1%}."
        if self.cosine >= ALIGNED:
            return "Right direction, wrong length: fine for ranking rows and where the outer rate is tuned."
        if self.cosine >= ROUGH:
            return "Roughly the right direction: expect slower progress, and check the ranking that it gives."
        return "Wrong: the estimate does not point where the reference does."

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change, a sentence each; nothing for an accurate estimate at a solved lower level."""
        if self.descends:
            return (
                "The numbers say how far that agrees with the upper loss after training, not whether it is right: "
                "judge it by the weights that it leads to. penalty, optimizer_aware and unroll do estimate the "
                "hypergradient.",
            )
        return tuple(line for line in (*self._of_the_system(), *self._of_the_point()) if line)

    def __str__(self) -> str:
        numbers = (
            f"cosine {self.cosine:.4f}, relative error {self.relative_error:.2g} against {self.reference.words}; "
            f"inner stationarity {self.stationarity:.2g}"
        )
        return "\n".join((self.verdict, numbers, *(f"- {line}" for line in self.advice)))

    @property
    def _has_reference(self) -> bool:
        if self.horizon is not None:
            return True
        positive = self.reference.curvature is None or self.reference.curvature > 0
        return positive and self.reference.stationarity <= LARGE

    def _of_the_system(self) -> tuple[str, ...]:
        lines = []
        curvature, damping = self.curvature, self.damping or 0.0
        system = self.residual is not None
        if system and curvature is not None and curvature + damping <= 0:
            lines.append(
                f"The Hessian is indefinite (curvature {curvature:.2g}): use gauss_newton, or damping above "
                f"{-curvature:.2g}."
            )
        elif self.residual is not None and self.residual > 1:
            lines.append(
                f"The answer is too long (residual {self.residual:.2g}): add damping, or lower a step_size that "
                "was given."
            )
        elif self.residual is not None and self.residual > ACCURATE:
            lines.append(
                f"The linear system is solved to {self.residual:.2g} only: increase iterations or rank."
            )
        if curvature is not None and curvature > 0 and damping / (curvature + damping) > LARGE:
            lines.append(
                f"The damping of {damping:.2g} is not small beside the smallest curvature {curvature:.2g}: it "
                f"shortens flat directions by up to {damping / (curvature + damping):.0%}."
            )
        return tuple(lines)

    def _of_the_point(self) -> tuple[str, ...]:
        lines = []
        if self.horizon is not None and LARGE < self.reference.uncertainty < float("inf"):
            lines.append(
                "Differences of the upper loss are lost in rounding: compare with a longer horizon, or in float64."
            )
        if not self._has_reference:
            lines.append(
                f"Solving the lower level ended at stationarity {self.reference.stationarity:.2g}"
                + (
                    ""
                    if self.reference.curvature is None
                    else f" and curvature {self.reference.curvature:.2g}"
                )
                + ": compare with a horizon of training steps instead."
            )
        elif self.family == "implicit" and self.horizon is None:
            cost = self.convergence_error
            if self.stationarity > LARGE if cost is None else cost > max(ACCURATE, self.relative_error / 2):
                lines.append(
                    f"Inner not converged (stationarity {self.stationarity:.2g}"
                    + ("" if cost is None else f", costing {cost:.0%}")
                    + "): the implicit formula describes the optimum w*, not the present w. Train longer between outer "
                    "steps, or take optimizer_aware or unroll, which describe the steps that are taken."
                )
        if self.family == "implicit" and self.horizon is not None:
            lines.append(
                "The implicit formula describes the optimum, the reference only the next steps: compare with "
                "horizon=None where the lower level is trained to its optimum."
            )
        if self.family == "one step" and self.horizon != 1 and self.relative_error > CLOSE:
            lines.append(
                "One-step estimators leave out the curvature that later steps meet: conjugate_gradient (at an "
                "optimum) or unroll (before it) take it in."
            )
        if self.family in ("penalty", "single loop") and self.relative_error > CLOSE:
            lines.append("Copies and carried directions need time: increase settle, and gamma for a penalty.")
        return tuple(lines)
