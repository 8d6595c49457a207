"""What the table says of an estimator, and what it needs to make one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import optax
from jaxtyping import Array

from bilevel.core.estimators.settings import AnySettings
from bilevel.core.hypergradient import Hypergradient
from bilevel.core.problem import Problem, RowProblem
from bilevel.core.solver import Solver, alternating
from bilevel.core.tree import PyTree

Family = Literal["one step", "implicit", "unrolled", "penalty", "single loop", "zeroth order"]


class Ingredients(NamedTuple):
    """What a solver is made from.

    Attributes:
        problem: the bilevel problem.
        inner: optimizer of the inner variables.
        outer: optimizer of the outer variables.
        settings: the estimator's.
        upper_share: solver step -> share of the upper level, for the penalty forms: 1 / (1 + gamma) without it.
        scale_outer: see `bilevel.core.solver.penalty`.
        outer_start: initial outer variables, for a general problem only.
    """

    problem: Problem | RowProblem
    inner: optax.GradientTransformation
    outer: optax.GradientTransformation
    settings: AnySettings
    upper_share: Callable[[Array], Array] | None = None
    scale_outer: bool = True
    outer_start: PyTree | None = None


@dataclass(frozen=True)
class Estimator:
    """One row of the table. The texts make docs/estimators.md; costs are in gradients of one batch.

    Attributes:
        name: what `--hypergradient` takes.
        family: what kind of estimate it is.
        formula: what it computes, in one line.
        when: when to take it, in one line.
        cost: of one outer step, beyond the lower steps.
        memory: beyond parameters, optimizer state and the tape of one gradient.
        assumes: what must hold for the estimate to mean what it says.
        reads: the settings that it takes; others that are given are refused.
        solver: from ingredients to a solver.
        hypergradient: from settings to the estimator itself, for those that stand apart from their solver.
        scale: what the solver's outer gradient must be divided by to be the hypergradient.
        descends: what its outer steps descend, where that is not the upper loss after training.
        references: papers.
        inverts: whether it solves a linear system with the lower level's second derivative.
    """

    name: str
    family: Family
    formula: str
    when: str
    cost: str
    memory: str
    assumes: str
    reads: tuple[str, ...]
    solver: Callable[[Ingredients], Solver]
    hypergradient: Callable[[AnySettings], Hypergradient] | None = None
    scale: Callable[[AnySettings], float] = lambda settings: 1.0
    descends: str = ""
    references: str = ""
    inverts: bool = False

    def check(self, settings: AnySettings) -> None:
        """Refuses settings that this estimator would drop.

        Raises:
            ValueError: naming them.
        """
        dropped = [
            field.name
            for field in fields(settings)
            if field.name not in ("name", *self.reads) and getattr(settings, field.name) != field.default
        ]
        if dropped:
            raise ValueError(
                f"{self.name} takes no {' or '.join(dropped)}: it reads {', '.join(self.reads)} alone"
            )


def alternating_with(
    hypergradient: Callable[[AnySettings], Hypergradient],
) -> Callable[[Ingredients], Solver]:
    """How a solver is made that alternates lower steps with steps along this hypergradient."""

    def solver(given: Ingredients) -> Solver:
        return alternating(
            given.problem,
            given.inner,
            given.outer,
            hypergradient(given.settings),
            outer_start=given.outer_start,
        )

    return solver
