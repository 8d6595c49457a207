"""A run's folder at the run's start: fresh, or that of a run that goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bilevel.data import write_rejected
from bilevel.errors import InputError
from bilevel.runs.config_file import write_config
from bilevel.runs.facts import run_facts
from bilevel.runs.job import Job
from bilevel.runs.run_facts import write_facts
from bilevel.runs.run_folder import create_run_folder, environment, is_used, write_environment
from bilevel.runs.run_record import check_inputs, has_begun, write_inputs
from bilevel.storage.fingerprint import fingerprint_tree

_KNOWN_AS = {
    "pool": "the pool",
    "validation": "the trusted rows",
    "test": "the held-out rows",
    "model": "the model",
}


def open_folder(job: Job, folder: str | Path | None, resume: bool) -> Path:
    """Makes the run folder and writes down what the run begins with; or checks that it goes on with the same.

    Args:
        job: what runs.
        folder: where; None for a fresh folder in `runs`.
        resume: whether to go on with the run that stands there; where none has begun, it begins.

    Raises:
        InputError: the folder cannot be used, or rows or model are not those that its run began with.
    """
    path = None if folder is None else Path(folder)
    if resume and path is None:
        raise InputError("resume=True goes on in a folder: name it with folder=")
    if resume and path is not None and has_begun(path):
        check_same_inputs(path, job)
        _say_what_changed(path)
        return path
    record = job.record
    if not (resume and path is not None and is_used(path)):
        path = create_run_folder("runs", record.experiment, record.preset or job.main, job.seed, path)
    assert path is not None  # made, or there already
    if record.config is not None:
        write_config(path, record.config, record.experiment)
    write_environment(path)
    write_rejected(path / "rejected.jsonl", record.rejected)
    write_facts(path, run_facts(job))
    write_inputs(path, _fingerprints(job))
    for notice in record.notices:
        print(f"note: {notice}", file=sys.stderr)
    return path


def check_same_inputs(folder: Path, job: Job) -> None:
    """Raises InputError where rows, model or what else a run depends on are not those that it began with."""
    check_inputs(folder, _fingerprints(job), {**_KNOWN_AS, **job.record.known_as})


def _fingerprints(job: Job) -> dict[str, str]:
    rows = {name: rows.fingerprint for name, rows in job.data.items()}
    rows |= {f"the task {task.name}": task.task.fingerprint for task in job.tasks}
    return rows | {"model": fingerprint_tree((job.model.params, job.model.base))} | dict(job.record.also)


def _say_what_changed(folder: Path) -> None:
    """Says when a run goes on where its numbers may come out otherwise, in their last digits."""
    path = folder / "environment.json"
    if not path.exists():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), environment()
    was, is_ = (
        {"jaxlib": found["packages"].get("jaxlib"), "devices": f"{found['devices']} x {found['device_kind']}"}
        for found in (before, now)
    )
    for name in was:
        if was[name] != is_[name]:
            print(
                f"note: the run began with {name} {was[name]}, and goes on with {is_[name]}: it will not be the same "
                "to the last bit",
                file=sys.stderr,
            )
