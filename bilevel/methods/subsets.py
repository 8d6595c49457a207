"""Training on a few rows of the pool, in epochs, from a model that has seen some: what such methods share.

Controls that every choice must be compared with:

random share      as many rows, drawn once, or anew for every epoch, which sees as many different rows as can be
longest share     those with the longest responses, which complexity times diversity comes close to choosing
full data         all rows, as many epochs: as many times the compute as the share is smaller than one
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bilevel.core import RowProblem, frozen
from bilevel.core.ranges import check_ranges
from bilevel.core.solver import Solver
from bilevel.curate.passes import token_rows
from bilevel.data import Dataset
from bilevel.data.parts import responses
from bilevel.errors import InputError
from bilevel.methods.baselines import UpperFunction
from bilevel.methods.method import Data, Leaves, Method
from bilevel.methods.training import TrainingSettings
from bilevel.model import as_model
from bilevel.objectives import mean_loss
from bilevel.schedule import Choose, CountUses, Move, Passes, Round, Schedule, Steps, Train
from bilevel.schedule.choose import Choice, Rule
from bilevel.weighting import uniform

EXPERIENCE = "experience"


@dataclass(frozen=True)
class SubsetSettings:
    """How much is trained on.

    Attributes:
        share: of the pool that an epoch trains on, in (0, 1].
        epochs: passes over as many rows.
        experience: share of the pool, drawn once, that the model is trained on before all else, for models from random
            weights: a model that has learned nothing cannot say what is hard. 0 for a model that knows something.
        experience_steps: optimizer steps on it, under an optimizer of their own.
        experience_rate: its peak learning rate; None for that of the training.
    """

    share: float = 0.05
    epochs: int = 3
    experience: float = 0.0
    experience_steps: int = 0
    experience_rate: float | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("share", 0 < self.share <= 1, "in (0, 1]"),
            ("epochs", self.epochs >= 1, "1 or more"),
            ("experience", 0 <= self.experience <= 1, "in [0, 1]"),
            ("experience_steps", self.experience_steps >= 0, "0 or more"),
            ("experience_rate", self.experience_rate is None or self.experience_rate > 0, "positive"),
        )
        if (self.experience > 0) != (self.experience_steps > 0):
            raise ValueError("experience is a share of the rows and steps on them: give both, or neither")

    def budget(self, rows: int) -> int:
        """K = floor(share N), the rows of an epoch.

        Raises:
            InputError: that is none.
        """
        # 0.29 * 100 is 28.999999999999996 in binary fractions.
        found = int(self.share * rows + 1e-6)
        if found < 1:
            raise InputError(
                f"a share of {self.share:g} of {rows} rows is not one row: raise the share, or give more rows"
            )
        return found


class Epochs:
    """A problem, a solver that is the same in all epochs, and the moves that train with it.

    Args:
        model: a `Model`, or a language model of `models.load`.
        data: the rows.
        training: how the model is trained; its steps give way to epochs of the budget, over all of which the learning
            rate rises and falls once.
        settings: how much is trained on.
        upper: what is watched on trusted rows; by default their mean loss.
    """

    def __init__(
        self,
        model: Any,
        data: Data,
        training: TrainingSettings,
        settings: SubsetSettings,
        upper: UpperFunction | None,
    ) -> None:
        self.model, self.settings = as_model(model), settings
        self.rows = settings.budget(len(data["pool"]))
        self._plan, self._experienced = training.plan, len(data["pool"]) * settings.experience
        steps = settings.epochs * math.ceil(self.rows / training.batch_rows)
        self.problem = RowProblem(
            self.model.first_order, uniform(), upper or mean_loss(self.model.first_order)
        )
        self.solver = self._solver(replace(training, steps=steps, epochs=None))
        rate, first = settings.experience_rate or training.learning_rate, max(1, settings.experience_steps)
        self._first = self._solver(replace(training, steps=first, epochs=None, learning_rate=rate))

    def train(self, chosen: str, first: bool) -> Train:
        """One pass over a row set, each of its rows once.

        Args:
            chosen: the set.
            first: whether this is the first of all epochs, which begins the optimizer.
        """
        start = "current" if first else "continue"
        length = Passes(1, expected=self.rows)
        return Train(self.problem, self.solver, length, self._plan, ("inner",), start=start, rows=chosen)

    @property
    def before(self) -> Schedule:
        """What comes before the first choice: the model's experience, if it is to have some."""
        if not self.settings.experience:
            return ()
        count = max(1, round(self._experienced))

        def drawn(choice: Choice) -> np.ndarray:
            return np.sort(choice.rng.permutation(len(choice.dataset))[:count])

        steps = Steps(self.settings.experience_steps)
        train = Train(self.problem, self._first, steps, self._plan, ("inner",), rows=EXPERIENCE)
        return (Round((Choose(drawn, into=EXPERIENCE), train)),)

    def method(self, name: str, rounds: Schedule, chosen: tuple[str, ...], selected: str) -> Method:
        """The method of these rounds; a row weighs as often as it stands in the sets that were trained on."""
        last = Round((CountUses(chosen, into="weight"),))
        leaves = Leaves(column="weight", rows=selected)
        return Method(self.problem, self.solver, (*self.before, *rounds, last), leaves, name=name)

    def _solver(self, training: TrainingSettings) -> Solver:
        return frozen(self.problem, training.optimizer())


def fixed_share(
    model: Any,
    data: Data,
    *,
    training: TrainingSettings,
    rule: Callable[[int], Rule],
    settings: SubsetSettings = SubsetSettings(),
    anew: bool = False,
    upper: UpperFunction | None = None,
    name: str = "fixed_share",
) -> Method:
    """Fine-tuning on rows that are chosen by what they say themselves, or by chance.

    Args:
        model: a `Model`, or a language model of `models.load`.
        data: the rows.
        training: how the model is trained; of its steps as many as the epochs take.
        rule: from the budget to how rows are chosen: `random_rows`, `longest_rows`.
        settings: how much is trained on.
        anew: whether they are chosen again for every epoch, by a rule that draws; else once.
        upper: what is watched on trusted rows; by default their mean loss.
        name: of the method.
    """
    epochs = Epochs(model, data, training, settings, upper)
    numbers = range(1, settings.epochs + 1)
    chosen = [f"chosen_{number if anew else 1}" for number in numbers]
    rounds = []
    for number, into in zip(numbers, chosen, strict=True):
        choose: tuple[Move, ...] = (Choose(rule(epochs.rows), into=into),) if anew or number == 1 else ()
        rounds.append(Round((*choose, epochs.train(into, first=number == 1))))
    return epochs.method(name, tuple(rounds), tuple(chosen), chosen[-1])


def random_rows(count: int) -> Rule:
    """So many rows, drawn by the run's seed."""
    return lambda choice: choice.rng.permutation(len(choice.dataset))[:count]


def longest_rows(count: int) -> Rule:
    """The rows with the most response tokens, of equal ones the first."""

    def rule(choice: Choice) -> np.ndarray:
        return np.argsort(-response_lengths(choice.dataset), kind="stable")[:count]

    return rule


def response_lengths(rows: Dataset) -> np.ndarray:
    """Tokens of each row's last response."""
    first, end = responses(token_rows(rows, "a response's length"))
    return end - first
