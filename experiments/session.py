"""One run of one experiment: several methods from the same start on the same rows, and the folder they leave."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bilevel.core import RowProblem
from bilevel.data import write_rejected
from bilevel.runtime.config_file import write_config
from bilevel.runtime.devices import AXIS, data_mesh
from bilevel.runtime.metrics import MetricsWriter
from bilevel.runtime.progress import Progress
from bilevel.runtime.report import write_report
from bilevel.runtime.results import summarise, write_row_results
from bilevel.runtime.run_facts import write_facts
from bilevel.runtime.run_folder import create_run_folder, write_environment, write_summary
from bilevel.runtime.sections import Section, write_section
from bilevel.runtime.table import format_table, method_title
from bilevel.runtime.timing import part, write_timings
from bilevel.schedule import Context, Evaluate, RunState, Schedule, check_schedule, run_schedule
from experiments.facts import run_facts
from experiments.inputs import Inputs

Methods = Mapping[str, tuple[RowProblem, Schedule]]

_EVALUATION_ROWS = 128


def run_methods(
    experiment: str, config: Any, inputs: Inputs, methods: Methods, main: str, began: float
) -> Path:
    """Runs methods one after another and writes the run folder.

    Args:
        experiment: the experiment's name.
        config: its configuration, with `preset`, `seed`, `run_dir` and `training`.
        inputs: rows, tokenizer and model; every method starts from this model.
        methods: problem and schedule by name, in the order in which they run.
        main: the method whose weights, selection and model the folder keeps.
        began: `time.monotonic()` at the run's start.

    Returns:
        The run folder.
    """
    start = RunState(models={"base": inputs.params, "current": inputs.params})
    schedules = {name: _evaluated(schedule, inputs) for name, (_, schedule) in methods.items()}
    for name, schedule in schedules.items():
        check_schedule(schedule, start, _context(name, inputs, config))

    folder = create_run_folder("runs", experiment, config.preset, config.seed, config.run_dir)
    write_config(folder, config)
    write_environment(folder)
    write_rejected(folder / "rejected.jsonl", inputs.sets.rejected)
    write_facts(folder, run_facts(experiment, config, inputs, tuple(methods), main))
    for notice in inputs.sets.notices:
        print(f"note: {notice}", file=sys.stderr)

    pool = inputs.sets.encoded["pool"].rows
    results = {}
    with MetricsWriter(folder) as metrics:
        for name, schedule in schedules.items():
            state = run_schedule(
                schedule,
                start,
                _context(
                    name,
                    inputs,
                    config,
                    partial(metrics.write, name),
                    partial(write_section, folder, name),
                    folder,
                ),
            )
            signals = {signal: column.values for signal, column in state.signals.items()}
            results[name] = summarise(state.results.get("test"), signals.get("weight"), pool, name == main)
            if name == main:
                with part("writing rows and model"):
                    write_row_results(folder, pool, signals, state.sets["selected"])
                    inputs.model.write(folder / "model", state.models["current"], inputs.tokenizer)
            write_timings(folder)
    write_summary(
        folder,
        {
            "experiment": experiment,
            "preset": config.preset,
            "seed": config.seed,
            "seconds": time.monotonic() - began,
            "steps": config.training.steps,
            "methods": results,
        },
    )
    write_timings(folder)
    report = write_report(folder)
    print(format_table(results))
    print(f"report: {report}")
    return folder


def _evaluated(schedule: Schedule, inputs: Inputs) -> Schedule:
    """The schedule with an evaluation at its end, where there are held-out rows."""
    return (*schedule, (Evaluate("test"),)) if "test" in inputs.sets.encoded else schedule


def _context(
    name: str,
    inputs: Inputs,
    config: Any,
    log: Callable[[int, Mapping[str, Any]], None] = lambda step, numbers: None,
    show: Callable[[Section], None] = lambda section: None,
    folder: Path | None = None,
) -> Context:
    mesh = data_mesh()
    devices = mesh.shape[AXIS]
    return Context(
        data=inputs.sets.encoded,
        row_losses=inputs.first_order,
        evaluate=inputs.evaluate,
        mesh=mesh,
        seed=config.seed,
        log=log,
        progress=lambda steps: Progress(steps, method_title(name)),
        show=show,
        warn=lambda line: print(f"warning: {line}", file=sys.stderr),
        timed=lambda move: part(f"{method_title(name)}: {move}"),
        folder=folder,
        log_every=max(1, config.training.steps // 60),
        evaluation_rows=-(-_EVALUATION_ROWS // devices) * devices,
    )
