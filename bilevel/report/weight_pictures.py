"""How weights are spread, and what the rows' losses have to do with it."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bilevel.report.lines import Picture
from bilevel.report.row_groups import RowGroup
from bilevel.report.svg import GROUP_COLOURS, INK, MUTED, name_text, new_axes, to_svg

LEAST_WEIGHT = 1e-3
MOST_POINTS = 600
MARKERS = {"plain": "o", "fault": "x", "special": "^"}
MARKER_NAMES = {"plain": "clean", "fault": "faulty", "special": "hard or duplicate"}


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
    names = [f"{name_text(group.name)} ({len(group.positions):,})" for group in groups]
    axes.set_yticklabels(names, color=INK)
    axes.set_ylim(-len(groups) + 0.9, 1.0)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda exponent, _: _weight_tick(exponent)))
    axes.set_xlim(low - 0.05, high + 0.05)
    axes.set_xlabel("relative weight")
    caption = (
        "How much each row counts beside uniform training (dashed); the upright mark is a group's median."
    )
    return Picture("Row weights", to_svg(figure, "weights", caption), caption)


def weights_and_losses(
    relative: np.ndarray, losses: np.ndarray, groups: Sequence[RowGroup]
) -> Picture | None:
    """Every row, or a sample, as a point at its final loss and its relative weight.

    Args:
        relative: weights divided by their mean.
        losses: final losses; nan where a row has none.
        groups: which rows belong together.

    Returns:
        The picture, or None where no row has a loss.
    """
    known = np.isfinite(losses)
    if not known.any():
        return None
    figure, axes = new_axes(height=3.2)
    sampled = False
    legend = []
    for kind, marker in MARKERS.items():
        found = [group.positions for group in groups if group.kind == kind]
        if not found:
            continue
        positions = np.sort(np.concatenate(found))
        positions = positions[known[positions]]
        share = max(20, round(MOST_POINTS * len(positions) / known.sum()))
        chosen = positions[np.unique(np.linspace(0, len(positions) - 1, share).astype(int))[: len(positions)]]
        sampled |= len(chosen) < len(positions)
        shown = np.log10(np.maximum(relative[chosen], LEAST_WEIGHT))
        axes.plot(
            losses[chosen],
            shown,
            linestyle="",
            marker=marker,
            fillstyle="none",
            color=GROUP_COLOURS[kind],
            markersize=3.2,
            markeredgewidth=0.9,
            alpha=0.7,
        )
        legend.append((MARKER_NAMES[kind], _marker(kind)))
    axes.axhline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda exponent, _: _weight_tick(exponent)))
    axes.set_xlim(left=0)
    axes.set_xlabel("loss of the row at the end")
    axes.set_ylabel("relative weight")
    caption = "A row's weight against the loss that it has left (nats a token)."
    if sampled:
        caption += f" A sample of about {MOST_POINTS} rows."
    return Picture("Weight and loss", to_svg(figure, "weight-loss", caption), caption, tuple(legend))


def _marker(kind: str) -> Markup:
    shape = {
        "plain": '<circle cx="6" cy="6" r="3.5"/>',
        "fault": '<path d="M2.5 2.5l7 7m0-7l-7 7"/>',
        "special": '<path d="M6 2l4 7.5h-8z"/>',
    }[kind]
    style = f'style="stroke: var(--{kind})" fill="none" stroke-width="1.5"'
    return Markup(f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true"><g {style}>{shape}</g></svg>')


def _weight_tick(exponent: float) -> str:
    text = f"{10**exponent:g}"
    return f"≤ {text}" if np.isclose(exponent, np.log10(LEAST_WEIGHT)) else text
