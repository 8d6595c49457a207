"""What a method is: a problem, a solver and a schedule, and what is left when the schedule has run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import optax

from bilevel.core import EstimatorSettings, Problem, RowProblem
from bilevel.core.solver import Solver
from bilevel.data import Dataset
from bilevel.schedule import Evaluate, Round, Schedule, moves_of
from bilevel.schedule.moves import Evaluation
from bilevel.schedule.train import Train

Data = Mapping[str, Dataset]
"""Data sets by name: `pool`, the rows of the lower level; `validation`, those that somebody trusts; perhaps `test`."""


@dataclass(frozen=True)
class Leaves:
    """What of a run's state is a method's result.

    Attributes:
        column: the signal that says how much each row counts; None for a method that says nothing of rows.
        rows: the set of rows that it selects; None where it selects none.
        model: the model that it trains.
    """

    column: str | None = "weight"
    rows: str | None = "selected"
    model: str = "current"


@dataclass(frozen=True)
class Checkable:
    """What it takes to check a method's hypergradient against training itself.

    Attributes:
        estimator: solver step -> how the hypergradient is estimated there.
        optimizer: of the inner variables.
        lower_steps: inner steps between two outer steps.
        problem: whose hypergradient it is, where that is not the method's own problem.
        note: a line for the reader; "" for none.
    """

    estimator: Callable[[int], EstimatorSettings]
    optimizer: optax.GradientTransformation
    lower_steps: int = 1
    problem: Problem | RowProblem | None = None
    note: str = ""


@dataclass(frozen=True)
class Method:
    """A way of training a model on rows and of saying what they are worth.

    Attributes:
        problem: the bilevel problem.
        solver: what its moves train with.
        schedule: rounds of moves.
        leaves: what of the state is the result.
        check: how its hypergradient can be checked; None for a method without one.
        name: what it is called in tables and folders, unless a run names it otherwise.
        inner: the optimizer that trains the model, for whoever takes its training again; None where it is not said.
    """

    problem: Problem | RowProblem
    solver: Solver
    schedule: Schedule
    leaves: Leaves = Leaves()
    check: Checkable | None = None
    name: str = "method"
    inner: optax.GradientTransformation | None = None

    @property
    def lower_steps(self) -> int:
        """Lower steps of the moves whose length is given in steps."""
        return sum(move.planned_lower_steps for move in moves_of(self.schedule) if isinstance(move, Train))

    def evaluated(self, over: str = "test", tasks: Sequence[Evaluation] = ()) -> Method:
        """The method with an evaluation of its model at its end.

        Args:
            over: a data set; "" for none.
            tasks: what else its model is asked.
        """
        last = Evaluate(over, self.leaves.model, tasks=tuple(tasks))
        return replace(self, schedule=(*self.schedule, Round((last,))))
