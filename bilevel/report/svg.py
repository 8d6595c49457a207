"""matplotlib figures as SVG that belongs to the page: its font, its colours in light and in dark."""

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib knows no CSS variables: it draws in colours that nothing else uses, and these become variables.
INK, MUTED, RULE = "#010101", "#010102", "#010103"
GROUP_COLOURS = {"plain": "#010201", "fault": "#010202", "special": "#010203"}
SERIES_COLOURS = tuple(f"#01030{number}" for number in range(1, 7))
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2), (3, 3), (9, 3))
"""Lines differ in their dashes too, so that nobody needs to tell colours apart."""
WIDEST_NAME = 22
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    **{colour: f"--{kind}" for kind, colour in GROUP_COLOURS.items()},
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES_COLOURS, start=1)},
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


def series_style(number: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of the series of a number from 0; thirty-six differ."""
    return SERIES_COLOURS[number % len(SERIES_COLOURS)], DASHES[
        (number + number // len(SERIES_COLOURS)) % len(DASHES)
    ]


def swatch(number: int) -> Markup:
    """A short piece of a series' line, for a legend."""
    _, dashes = series_style(number)
    pattern = f' stroke-dasharray="{" ".join(map(str, dashes))}"' if dashes else ""
    colour = number % len(SERIES_COLOURS) + 1
    line = f'<path d="M0 4h26" style="stroke: var(--series-{colour})" stroke-width="2.5"{pattern}/>'
    return Markup(f'<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">{line}</svg>')


def name_text(name: str) -> str:
    """A name from the data as a label: one short line, in which matplotlib sees no mathematics."""
    line = "".join(letter if letter.isprintable() else " " for letter in name)
    width = 0
    for kept, letter in enumerate(line):
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > WIDEST_NAME:
            return line[:kept].rstrip().replace("$", r"\$") + "…"
    return line.replace("$", r"\$")


def new_axes(width: float = 4.6, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty picture.

    Args:
        width: inches; narrow enough that its text can be read on a phone.
        height: inches.

    Returns:
        The figure and its only axes. No window system and no global state of matplotlib's is involved.
    """
    with _style():
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
    with _style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    label = Markup.escape(description)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The page's fonts draw the text; matplotlib's own only measure it, and lack most scripts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield
