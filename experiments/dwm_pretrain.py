"""The data weighting model on plain text: `python -m experiments.dwm_pretrain --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.methods import Method, clean_only, dwm
from bilevel.methods.stages import taught_by_population
from bilevel.objectives import mean_loss
from bilevel.report.source_table import source_table
from bilevel.runs.command import run_command
from bilevel.runs.configuration import read_run
from bilevel.runs.job import Job
from bilevel.runs.running import run_configured
from experiments.bds_alpaca import labelled
from experiments.dwm_stages import compared_with, in_stages
from experiments.loading import REFUSALS, load_documents, record_of
from experiments.options import in_steps
from experiments.pretrain_config import PRESETS, DWMPretrain
from experiments.tasks import job_with_tasks

NAME = "dwm_pretrain"


def job_of(config: DWMPretrain) -> Job:
    """Everything that a configuration stands for."""
    asked = config.evaluation.read()
    inputs = load_documents(config.data, config.corpus, config.model, config.seed)
    model, data = inputs.model, inputs.data
    training = in_steps(config.training, PRESETS[config.preset].training, len(data["pool"]))
    given: dict[str, Any] = {"training": training, "upper": mean_loss(model.first_order)}
    method = dwm(
        model,
        data,
        settings=config.dwm,
        top_share=config.top_share,
        devices=inputs.layout.shares,
        **given,
    )
    if config.population > 1:
        method = taught_by_population(method, config.population, config.reset_every)
    staged = in_stages(method, inputs, config, training.batch_rows, NAME)
    methods: dict[str, Method | Callable[[np.ndarray], Method]] = {"dwm": staged}
    if config.baselines == "all":
        methods |= compared_with(inputs, config, **given, members=config.population)
        faulty = labelled(inputs, "fault")
        if faulty.any():
            methods["clean_only"] = clean_only(model, data, faulty=faulty, **given)
    record = record_of(NAME, config, inputs, training.plan)
    return job_with_tasks(methods, inputs, config, asked, record, main="dwm")


def job_of_run(folder: Path) -> Job:
    """What `python -m bilevel.check` needs of a run.

    Raises:
        InputError: no such run, one of another version, or inputs that are gone.
    """
    return job_of(read_run(folder, NAME, PRESETS))


def run(config: DWMPretrain) -> None:
    """Runs the experiment and leaves its run folder."""
    finished = run_configured(job_of, config)
    print(source_table(finished.folder, finished.job.data["pool"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, PRESETS, run, arguments, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
