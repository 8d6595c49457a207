"""What a report shows as pictures: how weights are spread, how losses fall, how many rows still count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from bilevel.runtime.report.row_groups import RowGroup
from bilevel.runtime.report.svg import GROUP_COLOURS, INK, METHOD_COLOURS, MUTED, new_axes, to_svg

MOST_POINTS = 120
LEAST_WEIGHT = 1e-3
LOG_SCALE_RATIO = 6.0
FEW_DECADES = 500.0


@dataclass(frozen=True)
class Picture:
    """A picture and the sentence that explains it.

    Args:
        title: what it shows.
        svg: the element.
        caption: one sentence for a reader who sees it for the first time.
        legend: methods with the number of their colour.
    """

    title: str
    svg: Markup
    caption: str
    legend: tuple[tuple[str, int], ...] = ()


def weight_distribution(relative: np.ndarray, groups: Sequence[RowGroup]) -> Picture:
    """Histograms of relative weights, one a group, over a common logarithmic axis.

    Args:
        relative: weights divided by their mean.
        groups: which rows belong together.

    Returns:
        The picture.
    """
    shown = np.log10(np.maximum(relative, LEAST_WEIGHT))
    low, high = min(shown.min(), -1.0), max(shown.max(), 1.0)
    edges = np.linspace(low, high, 49)
    figure, axes = new_axes(height=0.75 + 0.5 * len(groups))
    for place, group in enumerate(groups):
        counts, _ = np.histogram(shown[group.positions], edges)
        heights = 0.85 * counts / counts.max()
        base = -float(place)
        colour = GROUP_COLOURS[group.kind]
        axes.stairs(base + heights, edges, baseline=base, fill=True, color=colour, alpha=0.75)
        median = np.median(shown[group.positions])
        axes.plot([median, median], [base, base + 0.85], color=INK, linewidth=1.2)
    axes.axvline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.set_yticks([-float(place) + 0.3 for place in range(len(groups))])
    axes.set_yticklabels([f"{group.name} ({len(group.positions):,})" for group in groups], color=INK)
    axes.set_ylim(-len(groups) + 0.9, 1.0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda exponent, _: _weight_tick(exponent)))
    axes.set_xlim(low - 0.05, high + 0.05)
    axes.set_xlabel("relative weight (1 = as in uniform training)")
    caption = (
        "How much each row counts beside uniform training (dashed); the upright mark is a group's median."
    )
    return Picture("Row weights", to_svg(figure, "weights", caption), caption)


def curves(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, caption: str
) -> Picture | None:
    """One line a method over the steps.

    Args:
        metrics: lines by method; the order decides the colours.
        key: which number to draw.
        title: what it is.
        caption: one sentence about it.

    Returns:
        The picture, or None where no method has that number.
    """
    figure, axes = new_axes()
    legend, drawn, most_averaged = [], [], 1
    for place, (method, lines) in enumerate(metrics.items()):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if not points:
            continue
        number = place % len(METHOD_COLOURS)
        steps, values, averaged = _thin(np.array(points, dtype=np.float64))
        marker = "o" if len(steps) == 1 else None
        width = 2.0 if place == 0 else 1.3
        # The first method is what the run is about, so its line lies on top.
        axes.plot(
            steps, values, color=METHOD_COLOURS[number], linewidth=width, marker=marker, zorder=3 - place / 10
        )
        legend.append((method, number + 1))
        most_averaged = max(most_averaged, averaged)
        drawn.append(values)
    if not legend:
        return None
    if _set_scale(axes, np.concatenate(drawn)) == "log":
        caption += " The scale is logarithmic."
    if most_averaged > 1:
        caption += f" Points are means of up to {most_averaged} measurements."
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    return Picture(title, to_svg(figure, key, f"{title}. {caption}"), caption, tuple(legend))


def _thin(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Means of so many neighbours: a thousand noisy steps hide the course that a hundred means show."""
    size = -(-len(points) // MOST_POINTS)
    starts = np.arange(0, len(points), size)
    sums = np.add.reduceat(points, starts, axis=0)
    means = sums / np.diff([*starts, len(points)])[:, None]
    return means[:, 0], means[:, 1], size


def _set_scale(axes: Axes, values: np.ndarray) -> str:
    if values.min() > 0 and values.max() / values.min() > LOG_SCALE_RATIO:
        axes.set_yscale("log")
        few_decades = values.max() / values.min() < FEW_DECADES
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    return axes.get_yscale()


def _weight_tick(exponent: float) -> str:
    text = f"{10**exponent:g}"
    return f"≤ {text}" if np.isclose(exponent, np.log10(LEAST_WEIGHT)) else text
