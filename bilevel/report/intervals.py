"""A number over several seeds: its mean and how far it may be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from bilevel.report.table import Column

CONFIDENCE = 0.95
FEWEST_FOR_T = 3

EXPLANATION = (
    "Numbers are means over seeds: “± r” is the 95% t-interval of the mean of three seeds or more, “[a, b]” the "
    "smaller and the larger of two; a number alone is one run's."
)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds.

    Attributes:
        mean: of the runs.
        low: lower end: of the 95% t-interval of the mean for three runs or more, else the least value.
        high: upper end.
        count: how many runs.
    """

    mean: float
    low: float
    high: float
    count: int

    def texts(self, column: Column) -> tuple[str, str]:
        """The mean and its range as text, with as many digits as the column has; one run has no range."""
        if self.count == 1:
            return column.text(self.mean), ""
        if self.count < FEWEST_FOR_T:
            return column.text(self.mean), f"[{column.text(self.low)}, {column.text(self.high)}]"
        return column.text(self.mean), f"± {column.text(self.high - self.mean)}"


def interval(values: Sequence[float | None]) -> Interval | None:
    """Mean and interval of what several runs measured.

    For n >= 3 runs the interval is mean ± t(n - 1, 0.975) s / sqrt(n), with s the sample's standard deviation: it
    covers the mean over all seeds in 95% of cases where runs are independent and about normal. Of two runs both values
    are the interval's ends.

    Args:
        values: a number a run; None and numbers that are not finite do not count.

    Returns:
        The interval; None where no run has a number.
    """
    known = np.array([value for value in values if value is not None and math.isfinite(value)])
    if not len(known):
        return None
    mean = float(known.mean())
    if len(known) < FEWEST_FOR_T:
        return Interval(mean, float(known.min()), float(known.max()), len(known))
    quantile = float(stdtrit(len(known) - 1, (1 + CONFIDENCE) / 2))
    radius = quantile * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Interval(mean, mean - radius, mean + radius, len(known))
