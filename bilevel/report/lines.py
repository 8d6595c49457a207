"""Lines over steps, with bands where a line is the mean of several runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bilevel.report.svg import new_axes, series_style, swatch, to_svg

MOST_POINTS = 120
LOG_SCALE_RATIO = 6.0
FEW_DECADES = 500.0


@dataclass(frozen=True)
class Picture:
    """A picture and the sentence that explains it.

    Attributes:
        title: what it shows.
        svg: the element.
        caption: one sentence for a reader who sees it for the first time.
        legend: names, each with its swatch.
    """

    title: str
    svg: Markup
    caption: str
    legend: tuple[tuple[str, Markup], ...] = ()


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        name: what the legend calls it.
        x: [points], rising.
        y: [points]; nan leaves a gap.
        low: [points], lower edge of its band, or None for no band.
        high: [points], upper edge.
        style: number of its colour and dashes; the same thing keeps its number in all pictures of a page.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    style: int = 0


def line_picture(
    lines: Sequence[Line], name: str, title: str, caption: str, x: str = "step", y: str = ""
) -> Picture | None:
    """Draws lines over one axis.

    Args:
        lines: the first one lies on top.
        name: of the picture, unique in its page.
        title: what it shows.
        caption: one sentence about it.
        x: what the horizontal axis counts.
        y: what the vertical one shows; "" where the title says it.

    Returns:
        The picture, or None where no line has a point.
    """
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return None
    figure, axes = new_axes()
    drawn, most_averaged = [], 1
    for place, line in enumerate(lines):
        colour, dashes = series_style(line.style)
        xs, ys, averaged = _thin(line.x, line.y)
        only = np.isfinite(ys).sum() == 1
        axes.plot(
            xs,
            ys,
            color=colour,
            linewidth=2.0 if place == 0 else 1.4,
            linestyle=(0, dashes) if dashes else "-",
            marker="o" if only else None,
            zorder=3 - place / 100,
        )
        drawn.append(ys)
        if line.low is not None and line.high is not None:
            lows, highs = (_thin(line.x, edge)[1] for edge in (line.low, line.high))
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.16, linewidth=0, zorder=2 - place / 100)
            drawn += [lows, highs]
        most_averaged = max(most_averaged, averaged)
    if _set_scale(axes, np.concatenate(drawn)) == "log":
        caption += " The scale is logarithmic."
    if most_averaged > 1:
        caption += f" Points are means of up to {most_averaged} measurements."
    axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.6g}"))
    legend = tuple((line.name, swatch(line.style)) for line in lines)
    return Picture(title, to_svg(figure, name, f"{title}. {caption}"), caption.strip(), legend)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Means of so many neighbours: a thousand noisy steps hide the course that a hundred means show."""
    size = -(-len(x) // MOST_POINTS)
    if size == 1:
        return x, y, 1
    starts = np.arange(0, len(x), size)
    known = np.isfinite(y)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    totals = np.add.reduceat(np.where(known, y, 0.0), starts)
    middles = np.add.reduceat(x.astype(np.float64), starts) / np.diff([*starts, len(x)])
    return middles, np.where(counts > 0, totals / np.maximum(counts, 1), np.nan), size


def _set_scale(axes: Axes, values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    if values.min() > 0 and values.max() / values.min() > LOG_SCALE_RATIO:
        axes.set_yscale("log")
        few_decades = values.max() / values.min() < FEW_DECADES
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values.min() >= 0:
        axes.set_ylim(bottom=0, top=None if values.max() > 0 else 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    return axes.get_yscale()
