"""matplotlib figures as SVG that belongs to the page: its font, its colours in light and in dark."""

import io
import re

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib knows no CSS variables: it draws in colours that nothing else uses, and these become variables.
INK, MUTED, RULE = "#010101", "#010102", "#010103"
GROUP_COLOURS = {"plain": "#010201", "fault": "#010202", "special": "#010203"}
METHOD_COLOURS = tuple(f"#01030{number}" for number in range(1, 7))
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    **{colour: f"--{kind}" for kind, colour in GROUP_COLOURS.items()},
    **{colour: f"--series-{number}" for number, colour in enumerate(METHOD_COLOURS, start=1)},
}

# Text stays text: it can be selected and takes the page's font. A fixed salt gives the same file each time.
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
}


def new_axes(width: float = 4.6, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty picture.

    Args:
        width: inches; narrow enough that its text can be read on a phone.
        height: inches.

    Returns:
        The figure and its only axes. No window system and no global state of matplotlib's is involved.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an SVG element for the page.

    Args:
        figure: from `new_axes`.
        name: unique in the page; keeps the element's inner names apart from other pictures'.
        description: what a screen reader says.

    Returns:
        The element; its text comes from matplotlib, which escapes it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    label = Markup.escape(description)
    return Markup(re.sub(r"<svg ", f'<svg role="img" aria-label="{label}" ', text, count=1))
