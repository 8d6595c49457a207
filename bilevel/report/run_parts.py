"""Parts of a run's page that are words and tables: results, findings, warnings, rejected rows, time."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bilevel.report.row_text import row_texts
from bilevel.report.run_files import RunFiles
from bilevel.report.table import method_title, result_columns
from bilevel.runs.timing import OTHER, Part
from bilevel.weighting.statistics import heaviest_share

ORACLE, PLAIN = "clean_only", "uniform"
LISTED_REJECTED = 50
LISTED_REASONS = 20
EXAMPLES = 2
EXAMPLE_TEXT = 240
FEW_ROWS = 0.02
HEAVIEST = 0.1
SHORT = 0.005


def results_table(results: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Columns and lines of the results; the best of each column is marked, the oracle left out of the contest."""
    columns = result_columns(results.values())
    best = {}
    for column in columns:
        contest = (values.get(column.key) for method, values in results.items() if method != ORACLE)
        known = [value for value in contest if value is not None]
        if column.better and len(known) > 1:
            best[column.key] = min(known) if column.better == "lower" else max(known)
    lines = []
    for method, values in results.items():
        cells = [
            {
                "text": column.text(values.get(column.key)),
                "best": method != ORACLE
                and column.key in best
                and values.get(column.key) == best[column.key],
            }
            for column in columns
        ]
        lines.append({"method": method_title(method), "cells": cells})
    return {"columns": columns, "results": lines}


def facts_line(run: RunFiles) -> list[str]:
    """What the page says below its title."""
    facts = []
    if "steps" in run.summary:
        facts.append(f"{run.summary['steps']:,} steps")
    if "seconds" in run.summary:
        facts.append(duration(run.summary["seconds"]))
    if len(run.weights.get("id", ())):
        facts.append(f"{len(run.weights['id']):,} rows")
    elif "pool" in run.facts.sets:
        facts.append(f"{run.facts.sets['pool'].rows:,} rows")
    if run.facts.parameters:
        trained = f"{run.facts.trained:,} of " if 0 < run.facts.trained < run.facts.parameters else ""
        facts.append(f"{trained}{run.facts.parameters:,} parameters")
    if kind := run.environment.get("device_kind"):
        facts.append(f"{run.environment['devices']} × {kind}")
    return facts


def findings(run: RunFiles) -> list[str]:
    """The result in words, as far as the methods that ran allow it."""
    said = []
    match = {method: values.get("test_exact_match") for method, values in run.results.items()}
    found, plain, best = (match.get(method) for method in (run.main, PLAIN, ORACLE))
    if found is not None and plain is not None and run.main != PLAIN:
        text = f"{method_title(run.main)} reaches an exact match of {found:.3f}; "
        text += f"{method_title(PLAIN)} reaches {plain:.3f}"
        if best is not None:
            text += f" and training on the clean rows alone {best:.3f}"
            if plain < found <= best:
                text += f": {(found - plain) / (best - plain):.0%} of what the faults cost is recovered"
        said.append(text + ".")
    auc = run.results.get(run.main, {}).get("fault_auc")
    if auc is not None:
        said.append(f"A faulty row weighs less than a clean one in {auc:.1%} of all pairs.")
    if "weight" in run.weights:
        share = heaviest_share(run.weights["weight"], HEAVIEST)
        if share is not None:
            said.append(f"The heaviest tenth of the rows carries {share:.0%} of the weight.")
    return said


def warnings(run: RunFiles) -> list[str]:
    """What a reader must know before trusting the page."""
    said = []
    if not run.finished:
        said.append(f"This run has not finished. {_reached(run)}")
    said += run.warnings
    for method, lines in run.metrics.items():
        skipped = max((line.get("skipped_steps") or 0 for line in lines), default=0)
        if skipped:
            said.append(
                f"{method_title(method)}: {skipped} steps were not applied, because a number was not finite."
            )
        lost = Counter(key for line in lines for key in line.get("non_finite", ()))
        said += [
            f"{method_title(method)}: {key} was not finite in {count} of {len(lines)} measurements."
            for key, count in lost.items()
        ]
    effective = run.results.get(run.main, {}).get("effective_sample_size")
    rows = len(run.weights.get("id", ()))
    if effective is not None and rows > 1 and effective < FEW_ROWS * rows:
        said.append(
            f"The weights amount to {effective:,.1f} of {rows:,} rows: weight has gathered on few rows. A stronger "
            "entropy term, a floor or a budget keeps more of them."
        )
    return said


def rejected_section(rejected: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts by reason with examples, and the first rows of all."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for line in rejected:
        by_reason.setdefault(str(line.get("reason", "no reason given")), []).append(line)
    ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    return {
        "rejected_count": len(rejected),
        "reasons": [
            {
                "reason": reason,
                "count": f"{len(lines):,}",
                "remedy": lines[0].get("remedy", ""),
                "examples": [
                    {"id": line.get("id", "–"), "texts": row_texts(line, EXAMPLE_TEXT)}
                    for line in lines[:EXAMPLES]
                ],
            }
            for reason, lines in ordered[:LISTED_REASONS]
        ],
        "further_reasons": max(0, len(ordered) - LISTED_REASONS),
        "rejected": rejected[:LISTED_REJECTED],
    }


def time_section(attempts: Sequence[Sequence[Part]]) -> dict[str, Any]:
    """How long each part took, over all attempts at the run; parts that took next to nothing are summed up."""
    seconds: defaultdict[str, float] = defaultdict(float)
    compiling: defaultdict[str, float] = defaultdict(float)
    for one in (part for attempt in attempts for part in attempt):
        seconds[one.name] += one.seconds
        compiling[one.name] += one.compiling
    total = sum(seconds.values())
    short = [name for name in seconds if seconds[name] < SHORT * total and name != OTHER]
    names = sorted((name for name in seconds if name not in short), key=lambda name: name == OTHER)
    parts = [(name, seconds[name], compiling[name]) for name in names]
    if short:
        spent, compiled = (sum(of[name] for name in short) for of in (seconds, compiling))
        parts.insert(len(parts) - (OTHER in seconds), (f"{len(short)} short parts", spent, compiled))
    return {
        "attempts": len(attempts),
        "total": duration(total),
        "compiling": duration(sum(compiling.values())),
        "parts": [
            {
                "name": name,
                "seconds": duration(spent),
                "compiling": duration(compiled) if compiled >= 0.05 else "",
                "share": f"{spent / total:.1%}" if total else "–",
                "percent": f"{100 * spent / total:.1f}" if total else "0",
            }
            for name, spent, compiled in parts
        ],
    }


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _reached(run: RunFiles) -> str:
    """How far an unfinished run came."""
    begun = [method for method in run.methods if run.metrics.get(method)]
    if not begun:
        return "Nothing was measured yet."
    method = begun[-1]
    text = f"{method_title(method)} has reached step {run.metrics[method][-1]['step']:,}"
    steps = (
        run.config.get("training", {}).get("steps")
        if isinstance(run.config.get("training"), Mapping)
        else None
    )
    if steps:
        text += f" of {steps:,}"
    waiting = [method_title(name) for name in run.methods if name not in run.metrics]
    if waiting:
        text += f"; {', '.join(waiting)} {'has' if len(waiting) == 1 else 'have'} not begun"
    return text + "."
