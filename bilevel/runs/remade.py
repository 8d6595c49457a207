"""The job of a run, from its folder: what ran there can be looked at again, taken again, differentiated."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from bilevel.errors import InputError
from bilevel.objectives.user import named_function
from bilevel.runs.config_file import EXPERIMENT_KEY, FILE, read_raw_config
from bilevel.runs.job import Job
from bilevel.runs.run_record import has_begun


def job_of_folder(folder: Path, made_by: str | None = None) -> Job:
    """The job of a run: from the experiment that its configuration names, or from a function of its maker's.

    The library does not depend on experiments: the run's own folder names the one that it needs.

    Args:
        folder: the run folder.
        made_by: `FILE.py:FUNCTION`, for a run of `bilevel.run`.

    Raises:
        InputError: neither says how the run is made again.
    """
    if made_by is not None:
        made = named_function(made_by, "--made-by")()
        if not isinstance(made, Job):
            raise InputError(
                f"--made-by {made_by}: returned {type(made).__name__}, not what bilevel.job(...) makes"
            )
        return made
    if not (folder / FILE).exists() and has_begun(folder):
        raise InputError(
            f"{folder}: was made by bilevel.run in a program of its own: name a function that returns the same "
            "bilevel.job(methods, data, model, ...) with --made-by FILE.py:FUNCTION"
        )
    experiment = read_raw_config(folder).get(EXPERIMENT_KEY)
    if not isinstance(experiment, str) or not re.fullmatch(r"\w+", experiment):
        raise InputError(f"{folder / FILE}: names no experiment; was the run made by another version?")
    try:
        module = importlib.import_module(f"experiments.{experiment}")
    except ModuleNotFoundError as error:
        raise InputError(f"{folder / FILE}: there is no experiment {experiment!r} here") from error
    if not hasattr(module, "job_of_run"):
        raise InputError(
            f"{folder}: runs of {experiment} cannot be taken up again: experiments/{experiment}.py has no function "
            "job_of_run"
        )
    job = module.job_of_run(folder)
    assert isinstance(job, Job)
    return job
