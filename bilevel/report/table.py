"""The table that a run ends in: methods beside one another, in plain text."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

NULL = "-"


@dataclass(frozen=True)
class Column:
    """One metric of the table.

    Attributes:
        key: its name in the results.
        title: what the reader sees.
        better: "lower" or "higher", shown as an arrow; "" where neither is.
        digits: after the point.
    """

    key: str
    title: str
    better: str = ""
    digits: int = 3

    @property
    def heading(self) -> str:
        """The title with its direction."""
        arrow = {"lower": " ↓", "higher": " ↑", "": ""}[self.better]
        return self.title + arrow

    def text(self, value: float | None) -> str:
        """A value of this column as text; "-" for null and for numbers that are not finite."""
        return NULL if value is None or not math.isfinite(value) else f"{value:.{self.digits}f}"


RESULT_COLUMNS = (
    Column("test_loss", "test loss", "lower", 4),
    Column("test_exact_match", "exact match", "higher"),
    Column("fault_auc", "fault AUC", "higher"),
    Column("hard_auc", "hard AUC", "higher"),
    Column("effective_sample_size", "effective rows", digits=0),
)
"""What `summary.json` holds about each method; other numbers that a method reports follow them."""

TASK_METRICS = {
    "loss": Column("loss", "loss", "lower"),
    "perplexity": Column("perplexity", "perplexity", "lower"),
    "exact_match": Column("exact_match", "exact match", "higher"),
    "accuracy": Column("accuracy", "accuracy", "higher"),
    "accuracy_norm": Column("accuracy_norm", "accuracy per character", "higher"),
    "refusal_rate": Column("refusal_rate", "refusal rate"),
}
"""What `summary.json` holds of each task that methods' models were asked, under `TASK/METRIC`."""

METHOD_TITLES = {
    "bds": "BDS",
    "dwm": "DWM",
    "uniform": "uniform SFT",
    "uniform_longer": "uniform, DWM's compute",
    "shuffled": "DWM's weights, shuffled",
    "tokens": "network of the tokens",
    "one_feature": "network of the plain loss",
    "alignment": "alignment, no network",
    "row_logits": "row logits (BDS)",
    "direct_mixing": "direct mixing",
    "validation_only": "validation only",
    "transferred": "trained network",
    "iterit": "IterIT",
    "static_ratio_and_diversity": "ratio x diversity, chosen once",
    "static_ratio": "ratio, chosen once",
    "longest_share": "longest rows",
    "random_share": "random rows",
    "random_anew": "random rows, drawn anew",
    "full_data": "all rows",
    "clean_only": "clean only (oracle)",
}
"""Methods by their names in `summary.json`, in the order in which a table shows them."""


def method_title(method: str) -> str:
    """What a reader sees for a method; names without a title show themselves."""
    return METHOD_TITLES.get(method, method.replace("_", " "))


def result_columns(results: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Chooses what a table of results shows: the columns in which some method has a number.

    Args:
        results: the numbers of each method.

    Returns:
        Those of `RESULT_COLUMNS`, then one for each further number.
    """
    present = dict.fromkeys(
        key
        for values in results
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    known = [column for column in RESULT_COLUMNS if column.key in present]
    further = [key for key in present if key not in {column.key for column in known}]
    return (*known, *map(_further, further))


def _further(key: str) -> Column:
    task, slash, metric = key.rpartition("/")
    if not slash:
        return Column(key, key.replace("_", " "))
    found = TASK_METRICS.get(metric, Column(metric, metric.replace("_", " ")))
    return replace(found, key=key, title=f"{task}: {found.title}")


def format_table(
    results: Mapping[str, Mapping[str, float | None]], columns: Sequence[Column] | None = None
) -> str:
    """Aligns results in plain text.

    Args:
        results: the numbers of each method; a key that is missing shows as null.
        columns: what to show, in this order; by default what `result_columns` chooses.

    Returns:
        Lines without a trailing newline: a heading, a rule, a line a method in the order given, and a legend
        for the arrows that stand in the heading.
    """
    columns = result_columns(results.values()) if columns is None else columns
    lines = [
        (method_title(method), *(column.text(values.get(column.key)) for column in columns))
        for method, values in results.items()
    ]
    return align(("method",), columns, lines)


def align(names: Sequence[str], columns: Sequence[Column], lines: Sequence[Sequence[str]]) -> str:
    """Aligns cells in plain text.

    Args:
        names: headings of the leading cells of a line, which are text and stand to the left.
        columns: of the other cells, which are numbers and stand to the right.
        lines: cells.

    Returns:
        A heading, a rule, the lines, and a legend for the arrows that stand in the heading.
    """
    cells = [[*names, *(column.heading for column in columns)], *lines]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    aligned = [
        "  ".join(_pad(text, widths[i], i < len(names)) for i, text in enumerate(row)).rstrip()
        for row in cells
    ]
    aligned.insert(1, "  ".join("-" * width for width in widths))
    legend = [text for better, text in _LEGEND.items() if any(column.better == better for column in columns)]
    return "\n".join([*aligned, f"({', '.join(legend)})"] if legend else aligned)


_LEGEND = {"lower": "↓ lower is better", "higher": "↑ higher is better"}


def _pad(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)
