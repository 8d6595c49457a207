"""The data weighting model on plain text: `python -m experiments.dwm_pretrain --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.methods import Method, clean_only, dwm, extra_steps, shuffled_weights, uniform_tuning
from bilevel.methods.dwm import describe
from bilevel.methods.stages import Origin, taught_by_population, watched
from bilevel.model import token_count
from bilevel.objectives import mean_loss
from bilevel.report.source_table import source_table
from bilevel.runs.command import run_command
from bilevel.runs.configuration import read_run
from bilevel.runs.job import Job
from bilevel.runs.running import run_configured
from experiments.bds_alpaca import labelled
from experiments.loading import REFUSALS, load_documents, record_of
from experiments.options import in_steps
from experiments.pretrain_config import PRESETS, DWMPretrain

NAME = "dwm_pretrain"


def job_of(config: DWMPretrain) -> Job:
    """Everything that a configuration stands for."""
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
    origin = Origin(
        describe(config.dwm),
        inputs.language.tokenizer,
        data.template,
        data["pool"].tokens.shape[1],
        training.batch_rows,
        {"rows": len(data["pool"]), "experiment": NAME, "seed": config.seed}
        | {name: getattr(config.data, name) for name in ("train", "valid")},
    )
    staged = watched(method, origin, config.dwm.warmup_stages, config.alarm)
    methods: dict[str, Method | Callable[[np.ndarray], Method]] = {"dwm": staged}
    if config.baselines == "all":
        # Every member of a population takes steps of its own.
        steps = config.dwm.hypergradient_steps * config.population
        extra = extra_steps(
            training,
            replace(config.dwm, hypergradient_steps=steps),
            token_count(model),
            inputs.language.trained,
            fused=model.first_order is not model.row_losses,
        )
        longer = given | {"training": replace(training, steps=training.steps + extra)}
        methods["uniform"] = uniform_tuning(model, data, **given)
        methods["uniform_longer"] = uniform_tuning(model, data, **longer)
        methods["shuffled"] = partial(shuffled_weights, model, data, seed=config.seed, **given)
        faulty = labelled(inputs, "fault")
        if faulty.any():
            methods["clean_only"] = clean_only(model, data, faulty=faulty, **given)
    return Job(
        methods,
        data,
        model,
        main="dwm",
        seed=config.seed,
        layout=inputs.layout,
        checkpoints=config.run.checkpoints,
        record=record_of(NAME, config, inputs, training.plan),
    )


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
