"""Metrics: numbers of a set of rows, each a mean, or a ratio of means, of what was measured row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Columns = Mapping[str, np.ndarray]
"""What was measured of each row, by name: numbers, and texts as object arrays."""


@dataclass(frozen=True)
class Metric:
    r"""A number that rows have together.

    With x_i the column `of` and c_i the column `per` (1 where there is none),

        value = sum_i x_i / sum_i c_i,      of an exponential one exp(sum_i x_i / sum_i c_i).

    >>> perplexity = Metric("perplexity", "perplexity", of="total", per="tokens", exponential=True)
    >>> perplexity.value({"total": np.log([4.0, 16.0]), "tokens": np.array([1, 2])})
    4.0

    Attributes:
        name: what it is called in files.
        title: what a reader sees.
        of: the column whose values are added up.
        per: the column whose sum divides; "" for the number of rows.
        better: "lower" or "higher"; "" where neither is.
        exponential: whether the exponential of the ratio is taken, as for perplexities.
        share: whether every row's value is 0 or 1.
        unit: what it counts in, for the axis of a picture.
        main: whether tables of several tasks show it.
        digits: after the point, of values under 100.
    """

    name: str
    title: str
    of: str
    per: str = ""
    better: Literal["lower", "higher", ""] = ""
    exponential: bool = False
    share: bool = False
    unit: str = ""
    main: bool = True
    digits: int = 3

    def parts(self, columns: Columns) -> Float[np.ndarray, "rows 2"]:
        """Each row's share of the numerator and of the denominator."""
        of = np.asarray(columns[self.of], np.float64)
        per = np.asarray(columns[self.per], np.float64) if self.per else np.ones_like(of)
        return np.stack([of, per], axis=1)

    def of_sums(self, numerator: Any, denominator: Any) -> Any:
        """The value from sums over rows, of one set of rows or of many."""
        ratio = numerator / denominator
        return np.exp(ratio) if self.exponential else ratio

    def value(self, columns: Columns) -> float:
        """The value over all rows."""
        return float(self.of_sums(*self.parts(columns).sum(axis=0)))

    def by_row(self, columns: Columns) -> Float[np.ndarray, " rows"]:
        """The number of each row alone, by which two models are compared row by row."""
        of, per = self.parts(columns).T
        return of / per

    def text(self, value: float) -> str:
        """A value as text, with as many digits as are worth reading.

        >>> Metric("loss", "loss", "loss").text(2.5), Metric("perplexity", "perplexity", "nll").text(12345.678)
        ('2.500', '12,346')
        """
        if not np.isfinite(value):
            return "-"
        return f"{value:.{self.digits}f}" if abs(value) < 100 else f"{value:,.0f}"
