"""The data weighting model on Alpaca-style rows: `python -m experiments.dwm_alpaca --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.core import EstimatorSettings
from bilevel.methods import Method, bds, clean_only, dwm
from bilevel.objectives import mean_loss
from bilevel.runs.command import run_command
from bilevel.runs.configuration import read_run
from bilevel.runs.job import Job
from bilevel.runs.overhead import overhead_table
from bilevel.runs.running import run_configured
from experiments.bds_alpaca import labelled
from experiments.dwm_config import PRESETS, DWMAlpaca
from experiments.dwm_stages import compared_with, in_stages
from experiments.loading import REFUSALS, load_rows, record_of
from experiments.options import in_steps
from experiments.tasks import job_with_tasks

NAME = "dwm_alpaca"
LEARNED = ("tokens", "one_feature", "alignment", "row_logits")

# A network of tokens learns from many noisy measurements of few rows: a regression averages them, where the chain rule
# follows the largest. Its scores are fractions of a deviation, and need a low temperature to tell rows apart.
_OTHER_NETWORKS: dict[str, dict[str, Any]] = {
    "tokens": {"network": "tokens", "signal": "regression", "temperature": 0.3, "learning_rate": 1e-3},
    "one_feature": {"network": "loss"},
}


def job_of(config: DWMAlpaca) -> Job:
    """Everything that a configuration stands for."""
    asked = config.evaluation.read()
    inputs = load_rows(config.data, config.corpus, config.model, config.seed, config.lora)
    model, data = inputs.model, inputs.data
    training = in_steps(config.training, PRESETS[config.preset].training, len(data["pool"]))
    given: dict[str, Any] = {"training": training, "upper": mean_loss(model.first_order)}
    network = partial(dwm, model, data, top_share=config.top_share, devices=inputs.layout.shares, **given)
    staged = in_stages(network(settings=config.dwm), inputs, config, training.batch_rows, NAME)
    methods: dict[str, Method | Callable[[np.ndarray], Method]] = {"dwm": staged}
    if config.baselines == "all":
        methods |= compared_with(inputs, config, **given)
        for name, changes in _OTHER_NETWORKS.items():
            methods[name] = network(settings=replace(config.dwm, **changes))
        logits = partial(bds, model, data, top_share=config.top_share, **given)
        # The derivative has no scale of its own to hold against an entropy term, and moves a softmax onto single rows.
        apart = replace(config.bds, weights="sigmoid", rule="sgd", rate=config.alignment_rate, entropy=0.0)
        methods["alignment"] = logits(settings=apart, hypergradient=EstimatorSettings("optimizer_aware"))
        methods["row_logits"] = logits(settings=config.bds)
        faulty = labelled(inputs, "fault")
        if faulty.any():
            methods["clean_only"] = clean_only(model, data, faulty=faulty, **given)
    record = record_of(NAME, config, inputs, training.plan)
    return job_with_tasks(methods, inputs, config, asked, record, main="dwm", learned=LEARNED)


def job_of_run(folder: Path) -> Job:
    """What `python -m bilevel.check` needs of a run.

    Raises:
        InputError: no such run, one of another version, or inputs that are gone.
    """
    return job_of(read_run(folder, NAME, PRESETS))


def run(config: DWMAlpaca) -> None:
    """Runs the experiment and leaves its run folder."""
    finished = run_configured(job_of, config)
    print(overhead_table(finished.folder, tuple(finished.job.methods)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, PRESETS, run, arguments, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
