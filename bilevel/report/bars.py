"""Bars over a few places."""

from collections.abc import Sequence

import numpy as np

from bilevel.report.lines import Line, Picture
from bilevel.report.svg import SERIES_COLOURS, new_axes, swatch, to_svg

_FILLED = 0.8


def bar_picture(
    series: Sequence[Line], name: str, title: str, caption: str, x: str = "", y: str = ""
) -> Picture | None:
    """Draws a bar for each series at each place.

    Args:
        series: values; at every place their bars stand in this order, from left to right.
        name: of the picture, unique in its page.
        title: what it shows.
        caption: one sentence about it.
        x: what the places are.
        y: what the bars measure; "" where the title says it.

    Returns:
        The picture, or None where no series has a value.
    """
    series = [one for one in series if np.isfinite(one.y).any()]
    if not series:
        return None
    figure, axes = new_axes()
    places = np.unique(np.concatenate([one.x for one in series]))
    width = _FILLED / len(series)
    for number, one in enumerate(series):
        middle = np.searchsorted(places, one.x) + (number - (len(series) - 1) / 2) * width
        colour = SERIES_COLOURS[one.style % len(SERIES_COLOURS)]
        axes.bar(middle, np.nan_to_num(one.y), width=0.9 * width, color=colour)
    axes.set_xticks(range(len(places)), [f"{place:,.6g}" for place in places])
    axes.grid(axis="x", visible=False)
    if x:
        axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    if len(series) > 1:
        caption = f"{caption} From left to right: {', '.join(one.name for one in series)}.".strip()
    legend = tuple((one.name, swatch(one.style % len(SERIES_COLOURS))) for one in series)
    return Picture(title, to_svg(figure, name, f"{title}. {caption}"), caption, legend)
