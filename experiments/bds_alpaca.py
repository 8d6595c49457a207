"""Bilevel data selection on Alpaca-style rows: `python -m experiments.bds_alpaca --help`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.core import EstimatorSettings
from bilevel.core.estimators import Situation, unsound
from bilevel.methods import (
    Method,
    TrainingSettings,
    bds,
    clean_only,
    direct_mixing,
    uniform_tuning,
    validation_only,
)
from bilevel.methods.baselines import UpperFunction
from bilevel.objectives import mean_loss
from bilevel.objectives.user import find_objective, traced_objective
from bilevel.runs.command import run_command
from bilevel.runs.configuration import read_run
from bilevel.runs.job import Job
from bilevel.runs.running import run_configured
from bilevel.storage.fingerprint import fingerprint_source
from experiments.bds_config import AUTHOR_WARNING, PRESETS, BDSAlpaca, check_author, presets_for
from experiments.loading import REFUSALS, Inputs, load_rows, record_of
from experiments.options import in_steps
from experiments.tasks import job_with_tasks

NAME = "bds_alpaca"


def job_of(config: BDSAlpaca) -> Job:
    """Everything that a configuration stands for."""
    check_author(config)
    objective = find_objective(config.upper, "--upper") if config.upper is not None else None
    asked = config.evaluation.read()
    inputs = load_rows(config.data, config.corpus, config.model, config.seed, config.lora)
    training = in_steps(config.training, PRESETS[config.preset].training, len(inputs.data["pool"]))
    also = {}
    if objective is not None:
        also["the file of --upper"] = fingerprint_source(objective)
        # Somebody's own function may count on one row a sequence.
        training = replace(training, upper_packing=training.upper_packing or "off")
    upper = _upper(config, inputs, training, objective)
    main = _bds(config, inputs, training, upper)
    methods = {"bds": main}
    if config.baselines == "all":
        given: dict[str, Any] = {"training": training, "upper": upper}
        methods["uniform"] = uniform_tuning(inputs.model, inputs.data, **given)
        share = config.bds.upper_share
        methods["direct_mixing"] = direct_mixing(inputs.model, inputs.data, upper_share=share, **given)
        methods["validation_only"] = validation_only(inputs.model, inputs.data, **given)
        faulty = labelled(inputs, "fault")
        if faulty.any():
            methods["clean_only"] = clean_only(inputs.model, inputs.data, faulty=faulty, **given)
    # The folder keeps the configuration as it was asked for: epochs of whatever rows it is run on again.
    record = record_of(NAME, config, inputs, training.plan, **also)
    return job_with_tasks(methods, inputs, config, asked, record, main="bds")


def job_of_run(folder: Path) -> Job:
    """What `python -m bilevel.check` needs of a run.

    Raises:
        InputError: no such run, one of another version, or inputs that are gone.
    """
    return job_of(read_run(folder, NAME, PRESETS))


def labelled(inputs: Inputs, name: str) -> np.ndarray:
    """Which rows of the pool carry a label."""
    return np.array([bool(row.labels.get(name)) for row in inputs.data["pool"].rows])


def _upper(
    config: BDSAlpaca, inputs: Inputs, training: TrainingSettings, objective: Callable[..., Any] | None
) -> UpperFunction:
    """The trusted rows' mean loss, or the user's objective, tried on the first rows that it will see together."""
    if objective is None:
        return mean_loss(inputs.model.first_order)
    said = f"--upper {config.upper}"
    return traced_objective(said, objective, inputs.model, inputs.data, training.plan)


def _bds(config: BDSAlpaca, inputs: Inputs, training: TrainingSettings, upper: UpperFunction) -> Method:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = bds(
            inputs.model,
            inputs.data,
            training=training,
            settings=config.bds,
            upper=upper,
            top_share=config.top_share,
            hypergradient=EstimatorSettings(**vars(config.hypergradient)),
        )
    said = [str(warning.message) for warning in caught]
    hard = float(np.mean(labelled(inputs, "hard")))
    said += unsound(config.hypergradient, Situation(hard_share=hard))
    for line in [AUTHOR_WARNING] if config.author else said:
        print(f"warning: {line}", file=sys.stderr)
    return method


def run(config: BDSAlpaca) -> None:
    """Runs the experiment and leaves its run folder."""
    run_configured(job_of, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(NAME, presets_for(arguments), run, arguments, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
