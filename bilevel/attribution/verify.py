"""Retraining as the judge of scores: random subsets left out, the most helpful rows left out, a step of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from bilevel.attribution.bank import Bank, Retrained, random_subsets
from bilevel.attribution.measures import Estimated, linear_datamodeling_score, most_helpful, predicted_losses
from bilevel.errors import InputError
from bilevel.schedule.context import Progress, Silent

_RANDOM_REMOVALS = 3
_STEP = 0.1
"""Length of the step of the weights, as a share of their own."""


@dataclass(frozen=True)
class Verified:
    """What retraining says of one set of scores.

    Attributes:
        lds: rank correlation of predicted and retrained losses over random subsets, with its interval.
        removal: by how much the trusted loss rises without the rows that should help most.
        step: how the trusted loss changes along minus the scores; all scores go the same distance.
        promised: the same by the scores themselves; None where they are in no unit of the loss.
    """

    lds: Estimated
    removal: float
    step: float
    promised: float | None


@dataclass(frozen=True)
class Verdict:
    """What retraining says of all scores.

    Attributes:
        of: by name.
        loss: of the trusted rows after the run itself.
        random_removal: by how much it rises without as many random rows, on average.
        subsets: how many random subsets were left out.
        left_out: rows of each.
        trainings: how many trainings all of it took.
    """

    of: Mapping[str, Verified]
    loss: float
    random_removal: float
    subsets: int
    left_out: int
    trainings: int


def verify(
    bank: Bank,
    scores: Mapping[str, Float[np.ndarray, "queries pool"]],
    weights: Float[np.ndarray, " pool"],
    *,
    subsets: int,
    drop: float,
    in_units: Mapping[str, bool],
    seed: int = 0,
    progress: Callable[[int], Progress] = lambda count: Silent(),
) -> Verdict:
    """Judges scores by retraining; one bank of trainings for all of them.

    Args:
        bank: of the run that the scores are of.
        scores: by name, of each query or of the mean of all trusted rows.
        weights: of the rows in that run.
        subsets: random subsets that are left out, one at a time.
        drop: share of the rows that each of them leaves out, and that is taken for the most helpful.
        in_units: whether scores are derivatives of the trusted loss, so that they promise a change.
        seed: of subsets and bootstrap.
        progress: `(trainings) -> Progress`.
    """
    check_subsets(len(weights), subsets, drop)
    rows = len(weights)
    left_out = random_subsets(rows, drop, subsets, seed)
    removed = {name: most_helpful(each.mean(axis=0), weights, drop) for name, each in scores.items()}
    random = random_subsets(rows, drop, _RANDOM_REMOVALS, seed + 1)
    steps = {name: _step(each.mean(axis=0), weights) for name, each in scores.items()}
    tables = np.concatenate(
        [
            weights[None],
            _without(weights, left_out),
            _without(weights, random),
            _without(weights, np.stack(list(removed.values()))),
            weights - np.stack(list(steps.values())),
            weights + np.stack(list(steps.values())),
        ]
    )
    bar = progress(len(tables))
    try:
        found = bank.retrain(tables, lambda more: bar.advance(more, {}))
    finally:
        bar.close()
    parts = iter(
        np.split(np.arange(len(tables)), np.cumsum([1, subsets, _RANDOM_REMOVALS, *[len(scores)] * 3])[:-1])
    )
    itself, without, at_random, best, forward, back = (Retrained(*(x[part] for x in found)) for part in parts)
    loss = float(itself.upper[0])
    of = {}
    for number, (name, each) in enumerate(scores.items()):
        losses = without.upper[None] if len(each) == 1 else without.rows.T
        mean, step = each.mean(axis=0), steps[name]
        of[name] = Verified(
            linear_datamodeling_score(predicted_losses(each, weights, left_out), losses, seed),
            float(best.upper[number] - loss),
            # Both ways, so that curvature leaves it.
            float(forward.upper[number] - back.upper[number]) / 2,
            -float(mean @ step) if in_units[name] else None,
        )
    return Verdict(
        of,
        loss,
        float(np.mean(at_random.upper) - loss),
        subsets,
        int(left_out[0].sum()),
        len(tables),
    )


def check_subsets(rows: int, subsets: int, drop: float) -> None:
    """Checks what is asked of random subsets before time is spent.

    Raises:
        InputError: a subset would leave no row of the pool, or there are fewer than three.
    """
    if not 0 < drop < 1 or round(drop * rows) >= rows:
        raise InputError(
            f"--drop {drop}: a subset must leave rows of the pool's {rows}: give a share below 1"
        )
    if subsets < 3:
        raise InputError(f"--verify {subsets}: a rank correlation takes at least 3 subsets")


def _without(
    weights: Float[np.ndarray, " pool"], left_out: Bool[np.ndarray, "tables pool"]
) -> Float[np.ndarray, "tables pool"]:
    """Silenced in place: the row's place in its batch and the batch's divisor stay."""
    return np.where(left_out, 0.0, weights)


def _step(scores: Float[np.ndarray, " pool"], weights: Float[np.ndarray, " pool"]) -> np.ndarray:
    """A step along the scores, a tenth as long as the weights, or as far as no weight leaves 0 on either side."""
    length = np.linalg.norm(scores)
    if length == 0:
        return np.zeros_like(scores)
    step = _STEP * np.linalg.norm(weights) / length * scores
    room = np.divide(weights, np.abs(step), out=np.full_like(step, np.inf), where=step != 0)
    # Rows at weight 0 have no room at all and are left where they are.
    step = np.where(room > 0, step, 0.0)
    return step * min(1.0, float(np.min(room[room > 0], initial=np.inf)))
