"""Which rows a signal flags: those beyond mean and deviations, or a share of them. One object for every signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from bilevel.core.ranges import check_ranges


@dataclass(frozen=True)
class Threshold:
    """Flags the rows of high values, or of low ones.

        above   x_i > mean + m std         below   x_i < mean - m std         both strict

    With a share, it flags as many rows as the share says, the most extreme ones, of equal ones the first. Values that
    are not finite were not measured: they enter neither mean nor deviation and are never flagged.

    >>> Threshold("above", deviations=1.0).flags(np.array([1.0, 1.0, 1.0, 5.0, np.nan]))
    array([False, False, False,  True, False])
    >>> Threshold("below", share=0.5).flags(np.array([3.0, 1.0, 2.0, 1.0]))
    array([False,  True, False,  True])

    Attributes:
        side: which end is flagged.
        deviations: m.
        share: of the measured rows, in [0, 1], to flag instead.
        ddof: what the deviation's denominator lacks of the number of values: 0 of a population, 1 of a sample.
    """

    side: Literal["above", "below"]
    deviations: float = 1.0
    share: float | None = None
    ddof: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("deviations", bool(np.isfinite(self.deviations)), "finite"),
            ("share", self.share is None or 0 <= self.share <= 1, "in [0, 1]"),
        )

    def flags(self, values: Float[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Which rows are flagged."""
        values, found = np.asarray(values, np.float64), np.zeros(len(values), bool)
        known = np.flatnonzero(np.isfinite(values))
        if self.share is None:
            tau = self.value(values)
            found[known] = values[known] > tau if self.side == "above" else values[known] < tau
            return found
        keys = -values[known] if self.side == "above" else values[known]
        found[known[np.argsort(keys, kind="stable")[: round(self.share * len(known))]]] = True
        return found

    def value(self, values: Float[np.ndarray, " rows"]) -> float:
        """Where the line is: mean plus or minus deviations, or the last flagged value; nan where nothing is known."""
        values = np.asarray(values, np.float64)
        known = values[np.isfinite(values)]
        if self.share is not None:
            flagged = values[self.flags(values)]
            return float((min if self.side == "above" else max)(flagged, default=np.nan))
        if len(known) <= self.ddof:
            return float("nan")
        away = self.deviations * np.std(known, ddof=self.ddof)
        return float(np.mean(known) + (away if self.side == "above" else -away))


AUTHORS_COMPLEXITY = Threshold("above", 1.0)
"""Middo's authors flag a row as hard where its loss is above this before and after training: `a.flags(x) & a.flags(y)`;
m is fixed to 1 in their code."""
AUTHORS_DIVERSITY = Threshold("below", 1.5)
"""Of the mean similarity to the nearest neighbours; the authors chose m by eye, 1.5 fits the sizes of their data."""
AUTHORS_QUALITY = Threshold("below", 1.5, ddof=1)
"""Of the mean rating; the deviation is a sample's here, a population's in the other two."""
