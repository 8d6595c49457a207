"""Bars over a few places."""

from collections.abc import Sequence

import numpy as np

from bilevel.report.lines import Line, Picture
from bilevel.report.svg import INK, SERIES_COLOURS, name_text, new_axes, swatch, to_svg

_FILLED = 0.8
_WIDEST = 0.4
"""Of a bar, in places: a few bars alone would fill the picture."""
_SHORT_NAMES = 36
"""Letters that fit side by side under a picture."""


def bar_picture(
    series: Sequence[Line],
    name: str,
    title: str,
    caption: str,
    x: str = "",
    y: str = "",
    names: Sequence[str] = (),
) -> Picture | None:
    """Draws a bar for each series at each place.

    Args:
        series: values, with their intervals where they have some; at every place their bars stand in this order, from
            left to right.
        name: of the picture, unique in its page.
        title: what it shows.
        caption: one sentence about it.
        x: what the places are.
        y: what the bars measure; "" where the title says it.
        names: what the places 0, 1, 2, ... are called; by default they are numbers.

    Returns:
        The picture, or None where no series has a value.
    """
    series = [one for one in series if np.isfinite(one.y).any()]
    if not series:
        return None
    figure, axes = new_axes()
    places = np.unique(np.concatenate([one.x for one in series]))
    width = min(_WIDEST, _FILLED / len(series))
    for number, one in enumerate(series):
        middle = np.searchsorted(places, one.x) + (number - (len(series) - 1) / 2) * width
        colour = SERIES_COLOURS[one.style % len(SERIES_COLOURS)]
        axes.bar(middle, np.nan_to_num(one.y), width=0.9 * width, color=colour)
        if one.low is not None and one.high is not None:
            # Rounding may put an end on the wrong side of the value by a last digit.
            reach = np.maximum(0, np.nan_to_num([one.y - one.low, one.high - one.y]))
            axes.errorbar(
                middle, np.nan_to_num(one.y), reach, fmt="none", ecolor=INK, elinewidth=1, capsize=3
            )
    said = [name_text(names[int(place)]) if names else f"{place:,.6g}" for place in places]
    long = bool(names) and sum(map(len, said)) > _SHORT_NAMES
    axes.set_xticks(range(len(places)), said)
    if long:
        axes.tick_params(axis="x", labelrotation=20)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.grid(axis="x", visible=False)
    if x:
        axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    if len(series) > 1:
        caption = f"{caption} From left to right: {', '.join(one.name for one in series)}.".strip()
    legend = tuple((one.name, swatch(one.style % len(SERIES_COLOURS))) for one in series)
    return Picture(title, to_svg(figure, name, f"{title}. {caption}"), caption, legend)
