"""One run of one experiment: several methods from the same start on the same rows, and the folder they leave."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bilevel.core import RowProblem
from bilevel.errors import InputError
from bilevel.layout.devices import AXIS, data_mesh
from bilevel.report import write_report
from bilevel.report.model_card import write_model_card
from bilevel.report.sections import write_section
from bilevel.report.table import format_table, method_title
from bilevel.runs.config_file import plain_config
from bilevel.runs.metrics import FILE as METRICS
from bilevel.runs.metrics import MetricsWriter
from bilevel.runs.progress import Progress
from bilevel.runs.results import summarise, write_row_results
from bilevel.runs.run_folder import write_summary
from bilevel.runs.run_record import FOLDER as CHECKPOINTS
from bilevel.runs.run_record import has_begun, read_finished, working_on, write_finished
from bilevel.runs.stopping import StopRequest
from bilevel.runs.timing import part, read_timings, write_timings
from bilevel.runs.wandb_sink import WandbSink
from bilevel.runs.warnings_file import add_warning
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import read_weights
from bilevel.schedule import (
    CheckpointSaver,
    Context,
    Evaluate,
    RunState,
    Schedule,
    Train,
    check_schedule,
    run_schedule,
)
from bilevel.storage.checkpoints import Checkpoints
from bilevel.storage.disk import naming_a_full_disk
from experiments.ending import ending_well
from experiments.inputs import Inputs
from experiments.opening import check_same_inputs, open_folder

Method = tuple[RowProblem, Schedule]
Methods = Mapping[str, Method | Callable[[np.ndarray], Method]]
"""Methods by name: what they are, or how they are made from the weights that the main method found."""

_EVALUATION_ROWS = 128


def run_methods(
    experiment: str,
    config: Any,
    inputs: Inputs,
    methods: Methods,
    main: str,
    began: float,
    also: Mapping[str, str] = MappingProxyType({}),
    learned: Collection[str] = (),
) -> Path:
    """Runs methods one after another and writes the run folder.

    With `config.run.resume` it goes on where that folder's run ended: methods that are finished are not run again,
    and the one that was running continues from its last checkpoint, to the same results bit for bit.

    Args:
        experiment: the experiment's name.
        config: its configuration, with `preset`, `seed`, `run` and `data`.
        inputs: rows, tokenizer and model; every method starts from this model.
        methods: problem and schedule by name, in the order in which they run; those that are made from the main
            method's weights come after it.
        main: the method whose weights, selection and model the folder keeps.
        began: `time.monotonic()` at the run's start.
        also: fingerprints of what else the run depends on, by what a reader knows it as; it is only ever continued
            with the same.
        learned: further methods that choose weights, whose separation of faulty rows is worth showing.

    Returns:
        The run folder.

    Raises:
        InputError: before anything is written: rows and batches that do not fit, a folder that cannot be used.
        RunEnded: the run was asked to stop, or the disk is full; it can be continued.
    """
    start = RunState(models={"base": inputs.params, "current": inputs.params})
    schedules = {
        name: _evaluated(method[1], inputs) for name, method in methods.items() if isinstance(method, tuple)
    }
    for name, schedule in schedules.items():
        check_schedule(schedule, start, _context(name, schedule, inputs, config))

    folder = open_folder(experiment, config, inputs, tuple(methods), main, also)
    earlier = sum(part.seconds for attempt in read_timings(folder) for part in attempt)
    project = config.run.wandb
    sinks = [] if project is None else [WandbSink(folder, project, plain_config(config))]
    with (
        ending_well(experiment, folder) as stop,
        working_on(folder),
        MetricsWriter(folder, also=sinks) as metrics,
    ):
        session = _Session(folder, config, inputs, main, {main, *learned}, start, stop, metrics)
        results, position = {}, 0
        for name, method in methods.items():
            found = read_finished(folder, name)
            if found is None:
                made = (
                    method if isinstance(method, tuple) else method(read_weights(folder / WEIGHTS)["weight"])
                )
                found = session.run(name, _evaluated(made[1], inputs), position)
            results[name], position = found["results"], found["metrics"]
        write_summary(
            folder,
            {
                "experiment": experiment,
                "preset": config.preset,
                "seed": config.seed,
                "seconds": earlier + time.monotonic() - began,
                "steps": _steps(schedules[main]),
                "methods": results,
            },
        )
        for sink in sinks:
            sink.summarise(results)
        write_timings(folder)
        write_model_card(folder)
        report = write_report(folder)
    print(format_table(results))
    print(f"report: {report}")
    return folder


@dataclass(frozen=True)
class _Session:
    """What all methods of a run share."""

    folder: Path
    config: Any
    inputs: Inputs
    main: str
    learned: Collection[str]
    start: RunState
    stop: StopRequest
    metrics: MetricsWriter

    def run(self, name: str, schedule: Schedule, position: int) -> dict[str, Any]:
        """Runs a method from where it stands, and returns what the rest of the run needs of it.

        Args:
            name: the method.
            schedule: its moves.
            position: of the metrics, when it began.
        """
        context = _context(name, schedule, self.inputs, self.config)
        options = self.config.run.checkpoints
        with contextlib.closing(Checkpoints(self.folder / CHECKPOINTS / name, options)) as checkpoints:
            saver = CheckpointSaver(
                checkpoints, options, self.start, stop=lambda: self.stop.signal is not None, note=self._note
            )
            context = replace(
                context,
                log=partial(self.metrics.write, name),
                show=partial(write_section, self.folder, name),
                warn=self._warn,
                folder=self.folder,
                saver=saver,
            )
            state = run_schedule(schedule, self._standing(name, schedule, context, saver, position), context)
        found = {"results": self._leave(name, state), **self._note()}
        write_finished(self.folder, name, found)
        return found

    def _standing(
        self, name: str, schedule: Schedule, context: Context, saver: CheckpointSaver, position: int
    ) -> RunState:
        """Where a method stands: at its newest checkpoint, or its start; metrics beyond it are cut off."""
        if self.config.run.resume is None:
            return self.start
        found = saver.newest(schedule, context, complain=_say)
        if found is None:
            self.metrics.cut(position, name, -1)
            _say(f"{method_title(name)} has no checkpoint and begins anew")
            return self.start
        if self.metrics.position() < found.notes["metrics"]:
            _say(f"{self.folder / METRICS} is shorter than it was; what it lost stays lost")
        self.metrics.cut(found.notes["metrics"], name, found.state.step)
        _say(f"{method_title(name)} continues after step {found.state.step} (checkpoint {found.number})")
        return found.state

    def _warn(self, line: str) -> None:
        print(f"warning: {line}", file=sys.stderr)
        add_warning(self.folder, line)

    def _note(self) -> dict[str, Any]:
        """What is kept beside a state: how much was measured by then."""
        write_timings(self.folder)
        return {"metrics": self.metrics.position()}

    def _leave(self, name: str, state: RunState) -> dict[str, float | None]:
        """Writes what a finished method leaves, and returns its line of the results."""
        pool = self.inputs.sets.encoded["pool"].rows
        signals = {signal: column.values for signal, column in state.signals.items()}
        if name == self.main:
            with part("writing rows and model"):
                with naming_a_full_disk(self.folder / "weights.parquet"):
                    write_row_results(self.folder, pool, signals, state.sets["selected"])
                with naming_a_full_disk(self.folder / "model"):
                    model, tokenizer = self.inputs.model, self.inputs.tokenizer
                    model.write(self.folder / "model", state.models["current"], tokenizer)
                    write_model_card(self.folder)
        return summarise(state.results.get("test"), signals.get("weight"), pool, name in self.learned)


def _say(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def _evaluated(schedule: Schedule, inputs: Inputs) -> Schedule:
    """The schedule with an evaluation at its end, where there are held-out rows."""
    return (*schedule, (Evaluate("test"),)) if "test" in inputs.sets.encoded else schedule


def standing(
    folder: Path,
    config: Any,
    inputs: Inputs,
    name: str,
    schedule: Schedule,
    also: Mapping[str, str] = MappingProxyType({}),
) -> tuple[RunState, Context]:
    """Returns where a method of a run stands at its newest checkpoint, and what it runs with.

    The run may be going on; nothing in its folder changes.

    Args:
        folder: the run folder.
        config: the run's configuration.
        inputs: rows, tokenizer and model.
        name: the method.
        schedule: its moves.
        also: as in `run_methods`.

    Raises:
        InputError: there is no checkpoint, none of this version, or rows or model changed since the run began.
    """
    if not has_begun(folder):
        raise InputError(f"{folder}: the run has not begun; check it after its first checkpoint")
    check_same_inputs(folder, inputs, also)
    schedule = _evaluated(schedule, inputs)
    context = _context(name, schedule, inputs, config)
    start = RunState(models={"base": inputs.params, "current": inputs.params})
    options = config.run.checkpoints
    kept = Checkpoints(folder / CHECKPOINTS / name, options, read_only=True)
    with contextlib.closing(kept) as checkpoints:
        found = CheckpointSaver(checkpoints, options, start).newest(schedule, context, complain=_say)
    if found is None:
        raise InputError(
            f"{folder / CHECKPOINTS / name}: there is no checkpoint yet; runs save themselves once a minute "
            "(--checkpoints.every-seconds)"
        )
    return found.state, context


def _steps(schedule: Schedule) -> int:
    """Inner steps of a schedule."""
    return sum(move.steps * move.plan.lower_steps for move in _trains(schedule))


def _trains(schedule: Schedule) -> Iterator[Train]:
    return (move for moves in schedule for move in moves if isinstance(move, Train))


def _context(name: str, schedule: Schedule, inputs: Inputs, config: Any) -> Context:
    """What a method runs with, but for those that it tells of its progress."""
    mesh = data_mesh()
    devices = mesh.shape[AXIS]
    return Context(
        data=inputs.sets.encoded,
        row_losses=inputs.first_order,
        evaluate=inputs.evaluate,
        mesh=mesh,
        seed=config.seed,
        log=lambda step, numbers: None,
        progress=lambda steps: Progress(steps, method_title(name)),
        timed=lambda move: part(f"{method_title(name)}: {move}"),
        log_every=max(1, _steps(schedule) // 60),
        evaluation_rows=-(-_EVALUATION_ROWS // devices) * devices,
        packing=next((move.plan.packing for move in _trains(schedule)), "off"),
    )
