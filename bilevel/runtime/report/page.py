"""The page: what goes into it, and how it is written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bilevel.data.rows import Row
from bilevel.runtime.atomic import write_atomically
from bilevel.runtime.report.pictures import Picture, curves
from bilevel.runtime.report.run_files import RunFiles, read_run
from bilevel.runtime.report.weights_section import weights_section
from bilevel.runtime.table import METHOD_TITLES, RESULT_COLUMNS, method_title

LISTED_REJECTED = 50
ORACLE = "clean_only"

LOSS_CURVES = (
    (
        "lower_loss",
        "Lower level: training loss",
        "The loss that each method trains on, under its own weights.",
    ),
    (
        "upper_loss",
        "Upper level: validation loss",
        "The loss on the trusted rows, which the weights answer to.",
    ),
)
SAMPLE_SIZE_CURVE = (
    "effective_sample_size",
    "Effective sample size",
    "How many equally weighted rows the weights amount to; it falls when weight gathers on few rows.",
)


def write_report(folder: Path, rows: Iterable[Row] = ()) -> Path:
    """Writes `report.html` from what a finished run left in its folder.

    Args:
        folder: the run folder, with `summary.json` and as many of `config.yaml`, `environment.json`,
            `metrics.jsonl`, `weights.parquet` and `rejected.jsonl` as the run wrote.
        rows: the training rows, for their texts and labels; rows that are not given show their id alone.

    Returns:
        The page's path. It needs no other file and no network.

    Raises:
        InputError: a file of the run is missing or broken.
    """
    run = read_run(folder)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((Path(__file__).parent / "style.css").read_text(encoding="utf-8"))
    page = templates.get_template("page.html").render(
        style=style, **_content(run, {row.id: row for row in rows})
    )
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def _content(run: RunFiles, texts: Mapping[str, Row]) -> dict[str, Any]:
    methods = {method: run.metrics[method] for method in _ordered(run.metrics)}
    return {
        "title": f"{run.summary['experiment']} · {run.summary['preset']} · seed {run.summary['seed']}",
        "facts": _facts(run),
        "findings": _findings(run.methods),
        "warnings": _warnings(methods),
        "columns": RESULT_COLUMNS,
        "results": _results(run.methods),
        "curves": _pictures(methods, LOSS_CURVES),
        "sample_size": next(iter(_pictures(methods, (SAMPLE_SIZE_CURVE,))), None),
        "method_title": method_title,
        **weights_section(run.weights, texts),
        "rejected": run.rejected[:LISTED_REJECTED],
        "rejected_count": len(run.rejected),
        "reasons": _counted(line.get("reason", "no reason given") for line in run.rejected),
        "config": _flat(run.config),
        "environment": _flat(run.environment),
    }


def _ordered(methods: Iterable[str]) -> list[str]:
    """Methods in the order of their titles' table, those without a title last."""
    known = list(METHOD_TITLES)
    return sorted(methods, key=lambda method: known.index(method) if method in known else len(known))


def _facts(run: RunFiles) -> list[str]:
    seconds, steps = run.summary["seconds"], run.summary["steps"]
    facts = [f"{steps:,} steps", f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"]
    if run.weights:
        facts.append(f"{len(run.weights['id']):,} rows")
    if kind := run.environment.get("device_kind"):
        facts.append(f"{run.environment['devices']} × {kind}")
    return facts


def _findings(methods: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The result in words, as far as the methods that ran allow it."""
    findings = []
    match = {method: values.get("test_exact_match") for method, values in methods.items()}
    found, plain, best = (match.get(method) for method in ("bds", "uniform", ORACLE))
    if found is not None and plain is not None:
        text = f"BDS reaches an exact match of {found:.3f}; uniform SFT reaches {plain:.3f}"
        if best is not None:
            text += f" and training on the clean rows alone {best:.3f}"
            if best > plain:
                text += f": {(found - plain) / (best - plain):.0%} of what the faults cost is recovered"
        findings.append(text + ".")
    auc = methods.get("bds", {}).get("fault_auc")
    if auc is not None:
        findings.append(f"A faulty row weighs less than a clean one in {auc:.1%} of all pairs.")
    return findings


def _warnings(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    warnings = []
    for method, lines in metrics.items():
        skipped = max((line.get("skipped_steps") or 0 for line in lines), default=0)
        if skipped:
            warnings.append(
                f"{method_title(method)}: {skipped} steps were not applied, because a number was not finite."
            )
    return warnings


def _results(methods: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Rows of the result table; the best of each column is marked, the oracle left out of the contest."""
    best = {}
    for column in RESULT_COLUMNS:
        values = [methods[m].get(column.key) for m in methods if m != ORACLE]
        known = [value for value in values if value is not None]
        if column.better and len(known) > 1:
            best[column.key] = min(known) if column.better == "lower" else max(known)
    return [
        {
            "method": method_title(method),
            "cells": [
                {
                    "text": column.text(methods[method].get(column.key)),
                    "best": method != ORACLE
                    and methods[method].get(column.key, None) == best.get(column.key, ""),
                }
                for column in RESULT_COLUMNS
            ],
        }
        for method in _ordered(methods)
    ]


def _pictures(
    metrics: Mapping[str, Sequence[Mapping[str, Any]]], wanted: Iterable[tuple[str, str, str]]
) -> list[Picture]:
    pictures = (curves(metrics, key, title, caption) for key, title, caption in wanted)
    return [picture for picture in pictures if picture is not None]


def _counted(reasons: Iterable[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as `outer.inner` keys."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += _flat(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", "–" if value is None else str(value)))
    return lines
