"""The methods of one run, one after another from the same start on the same rows, and the folder they leave."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bilevel.errors import InputError
from bilevel.methods.method import Method
from bilevel.report import write_report
from bilevel.report.model_card import MODEL, write_model_card
from bilevel.report.sections import write_section
from bilevel.report.table import format_table, method_title
from bilevel.runs.config_file import plain_config
from bilevel.runs.ending import ending_well
from bilevel.runs.evaluating import leave_evaluation, task_numbers, without_tasks
from bilevel.runs.job import Job
from bilevel.runs.leaving import leave_model, leave_rows, result_line
from bilevel.runs.metrics import FILE as METRICS
from bilevel.runs.metrics import MetricsWriter
from bilevel.runs.opening import open_folder
from bilevel.runs.progress import Progress
from bilevel.runs.run_folder import write_summary
from bilevel.runs.run_record import FOLDER as CHECKPOINTS
from bilevel.runs.run_record import read_finished, working_on, write_finished
from bilevel.runs.stopping import RunEnded, StopRequest
from bilevel.runs.timing import part, read_timings, write_timings
from bilevel.runs.wandb_sink import WandbSink
from bilevel.runs.warnings_file import add_warning, read_warnings
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import read_weights
from bilevel.schedule import CheckpointSaver, Context, RunState, check_schedule, run_schedule
from bilevel.schedule.context import Kept
from bilevel.schedule.rounds import moves_of
from bilevel.schedule.train import Train
from bilevel.storage.checkpoints import Checkpoints
from bilevel.storage.piecewise import NotWrittenError, write_each
from bilevel.storage.row_store import RowStore

_EVALUATION_ROWS = 128
_LINES = 60
"""About so many lines of metrics a method leaves, however long it trains."""
ROWS = "rows"
NOT_WRITTEN = "could not be written: "


def run_job(
    job: Job, folder: str | Path | None = None, resume: bool = False, began: float | None = None
) -> Path:
    """Runs methods one after another and writes the run folder.

    With `resume` it goes on where that folder's run ended: methods that are finished are not run again, and the one
    that was running continues from its last checkpoint, to the same results bit for bit.

    Args:
        job: what runs.
        folder: where; None for a fresh folder in `runs`.
        resume: whether to go on with the run that stands there; where none has begun, it begins.
        began: `time.monotonic()` at the run's start; now, if it is not given.

    Returns:
        The run folder.

    Raises:
        InputError: before anything is written: rows and batches that do not fit, a folder that cannot be used.
        RunEnded: the run was asked to stop, or the disk is full; it can be continued. Or at its end: a result could
            not be written; all others were.
    """
    began = time.monotonic() if began is None else began
    start, kept = start_of(job), Kept()
    _check(job, start, kept)
    path = open_folder(job, folder, resume)
    earlier = sum(part.seconds for attempt in read_timings(path) for part in attempt)
    record = job.record
    sinks = [] if record.wandb is None else [WandbSink(path, record.wandb, plain_config(record.config))]
    with (
        ending_well(record.proceed, path) as stop,
        working_on(path),
        MetricsWriter(path, also=sinks) as metrics,
    ):
        session = _Session(path, job, start, stop, metrics, kept, resume)
        results, position = {}, 0
        for name, method in job.methods.items():
            found = read_finished(path, name)
            if found is None:
                made = (
                    method if isinstance(method, Method) else method(read_weights(path / WEIGHTS)["weight"])
                )
                found = session.run(name, evaluated(made, job), position)
            results[name], position = found["results"], found["metrics"]
        write_summary(
            path,
            {
                "experiment": record.experiment,
                "preset": record.preset,
                "seed": job.seed,
                "seconds": earlier + time.monotonic() - began,
                "steps": job.main_method.lower_steps,
                "methods": results,
            },
        )
        for sink in sinks:
            sink.summarise(results)
        write_timings(path)
        answered = leave_evaluation(path, job.methods, job.tasks)
        write_model_card(path)
        report = write_report(path)
    print(format_table(results, without_tasks(results)))
    if answered:
        print(f"\n{answered}\n")
    print(f"report: {report}")
    lost = [line for line in read_warnings(path) if line.startswith(NOT_WRITTEN)]
    if lost:
        raise RunEnded(f"{'; '.join(lost)}; all else of {path} is there", 1)
    return path


@dataclass(frozen=True)
class _Session:
    """What all methods of a run share."""

    folder: Path
    job: Job
    start: RunState
    stop: StopRequest
    metrics: MetricsWriter
    kept: Kept
    resumes: bool

    def run(self, name: str, method: Method, position: int) -> dict[str, Any]:
        """Runs a method from where it stands, and returns what the rest of the run needs of it.

        Args:
            name: the method's.
            method: what runs.
            position: of the metrics, when it began.
        """
        checkpoints = Checkpoints(self.folder / CHECKPOINTS / name, self.job.checkpoints)
        with contextlib.closing(checkpoints):
            saver = CheckpointSaver(
                checkpoints,
                self.job.checkpoints,
                self.start,
                method.schedule,
                RowStore(self.folder / CHECKPOINTS / ROWS),
                stop=lambda: self.stop.signal is not None,
                note=self._note,
                timed=lambda: part("saving"),
            )
            context = replace(
                context_of(name, method, self.job, self.kept),
                log=partial(self.metrics.write, name),
                progress=lambda steps: Progress(steps, method_title(name)),
                show=partial(write_section, self.folder, name),
                warn=self._warn,
                timed=lambda move: part(f"{method_title(name)}: {move}"),
                folder=self.folder,
                saver=saver,
            )
            state = run_schedule(method.schedule, self._standing(name, context, saver, position), context)
        found = {"results": self._leave(name, method, state), **self._note()}
        write_finished(self.folder, name, found)
        return found

    def _standing(self, name: str, context: Context, saver: CheckpointSaver, position: int) -> RunState:
        """Where a method stands: at its newest checkpoint, or its start; metrics beyond it are cut off."""
        if not self.resumes:
            return self.start
        found = saver.newest(context.layout, complain=say)
        if found is None:
            self.metrics.cut(position, name, -1)
            say(f"{method_title(name)} has no checkpoint and begins anew")
            return self.start
        if self.metrics.position() < found.notes["metrics"]:
            say(f"{self.folder / METRICS} is shorter than it was; what it lost stays lost")
        self.metrics.cut(found.notes["metrics"], name, found.state.lower_steps)
        say(f"{method_title(name)} continues after step {found.state.step} (checkpoint {found.number})")
        return found.state

    def _warn(self, line: str) -> None:
        print(f"warning: {line}", file=sys.stderr)
        add_warning(self.folder, line)

    def _note(self) -> dict[str, Any]:
        """What is kept beside a state: how much was measured by then."""
        write_timings(self.folder)
        return {"metrics": self.metrics.position()}

    def _leave(self, name: str, method: Method, state: RunState) -> dict[str, float | None]:
        """Writes what a finished method leaves, and returns its line of the results."""
        if name == self.job.main:
            with part("writing rows and model"):
                try:
                    write_each(
                        (self.folder, lambda: leave_rows(self.folder, method, state)),
                        (
                            self.folder / MODEL,
                            lambda: leave_model(self.folder, method, state, self.job.model, self.job.layout),
                        ),
                    )
                except NotWrittenError as error:
                    for line in error.lines:
                        self._warn(f"{NOT_WRITTEN}{line}")
        numbers = result_line(method, state, learned=name in {self.job.main, *self.job.learned})
        return numbers | task_numbers(self.job.tasks, state.results)


def _check(job: Job, start: RunState, kept: Kept) -> None:
    for name, method in job.methods.items():
        if not isinstance(method, Method):
            continue  # it is made of what the main method will find
        try:
            check_schedule(evaluated(method, job).schedule, start, context_of(name, method, job, kept))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error


def say(line: str) -> None:
    """Tells whoever looks at the terminal."""
    print(f"note: {line}", file=sys.stderr)


def start_of(job: Job) -> RunState:
    """Where every method begins."""
    # Placed as training places them: else what scores the model at the start would be compiled again for its end.
    params = job.layout.replicate(job.model.params)
    return RunState(models={"base": params, "current": params}, data=dict(job.data))


def evaluated(method: Method, job: Job) -> Method:
    """The method with an evaluation at its end, where there are held-out rows or tasks."""
    over = "test" if "test" in job.data and job.model.says_losses else ""
    return method.evaluated(over, job.tasks) if over or job.tasks else method


def context_of(name: str, method: Method, job: Job, kept: Kept | None = None) -> Context:
    """What a method runs with, but for those that it tells of its progress."""
    trains = (move for move in moves_of(method.schedule) if isinstance(move, Train))
    return Context(
        job.model,
        job.layout,
        job.seed,
        name=name,
        log_every=max(1, method.lower_steps // _LINES),
        evaluation_rows=job.layout.rounded(_EVALUATION_ROWS),
        packing=next((move.plan.packing for move in trains), "off") if job.model.packs else "off",
        kept=kept or Kept(),
    )
