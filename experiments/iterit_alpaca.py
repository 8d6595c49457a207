"""IterIT on Alpaca-style rows: `python -m experiments.iterit_alpaca --help`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bilevel.curate.rules import everything
from bilevel.errors import InputError
from bilevel.methods import Method, fixed_share, iterit, longest_rows, random_rows
from bilevel.runs.command import run_command
from bilevel.runs.job import Job
from bilevel.runs.running import run_configured
from experiments.iterit_config import PRESETS, IterITAlpaca
from experiments.loading import REFUSALS, Inputs, load_rows, record_of
from experiments.tasks import job_with_tasks

NAME = "iterit_alpaca"


def job_of(config: IterITAlpaca) -> Job:
    """Everything that a configuration stands for."""
    defaults = PRESETS[config.preset].training
    if (config.training.steps, config.training.epochs) != (defaults.steps, defaults.epochs):
        raise InputError(
            "IterIT's steps follow from its rows: give --iterit.share and --iterit.epochs in place of --steps or "
            "--epochs"
        )
    asked = config.evaluation.read()
    inputs = load_rows(config.data, config.corpus, config.model, config.seed, config.lora)
    methods = {"iterit": _iterit(config, inputs)(settings=config.iterit)}
    if config.baselines == "all":
        methods |= _controls(config, inputs)
    record = record_of(NAME, config, inputs, config.training.plan)
    return job_with_tasks(methods, inputs, config, asked, record, main="iterit")


def _iterit(config: IterITAlpaca, inputs: Inputs) -> Callable[..., Method]:
    return partial(iterit, inputs.model, inputs.data, training=config.training, signals=config.signals)


def _controls(config: IterITAlpaca, inputs: Inputs) -> dict[str, Method]:
    """The same training on rows chosen once by ratio and diversity, ratio, chance, length; drawn anew; on all."""
    once = replace(config.iterit, mode="baseline")
    by_ratio = replace(once, score="complexity")
    choose = _iterit(config, inputs)
    share = partial(fixed_share, inputs.model, inputs.data, training=config.training)
    names: dict[str, Any] = {"random_share": random_rows, "longest_share": longest_rows}
    drawn = share(rule=random_rows, settings=once, anew=True, name="random_anew")
    return {
        "static_ratio_and_diversity": choose(settings=once, name="static_ratio_and_diversity"),
        "static_ratio": choose(settings=by_ratio, name="static_ratio"),
        **{name: share(rule=rule, settings=once, name=name) for name, rule in names.items()},
        "random_anew": drawn,
        "full_data": share(
            rule=lambda count: everything, settings=replace(once, share=1.0), name="full_data"
        ),
    }


def run(config: IterITAlpaca) -> None:
    """Runs the experiment and leaves its run folder."""
    run_configured(job_of, config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, PRESETS, run, arguments, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
