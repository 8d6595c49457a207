"""The data weighting model on plain text: `python -m experiments.dwm_pretrain --help`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from bilevel.data import EncodedRows, source_of
from bilevel.methods import clean_only, uniform_tuning
from bilevel.methods.dwm import extra_steps
from bilevel.methods.stages import taught_by_population
from bilevel.objectives import mean_loss
from bilevel.report.table import Column, align
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.weights import FILE as WEIGHTS
from bilevel.runs.weights import read_weights
from bilevel.schedule.checking import CheckableRun
from experiments.checking import network_run
from experiments.command import run_command
from experiments.inputs import Inputs, with_packing_notice
from experiments.options import in_steps
from experiments.pretrain_config import PRESETS, DWMPretrain
from experiments.session import Method, Methods, run_methods
from experiments.text_inputs import load_text_inputs
from experiments.trained_network import (
    leaving_snapshots,
    network_method,
    run_transferred,
    shuffled_weights,
    vocabulary,
)

NAME = "dwm_pretrain"


def run(config: DWMPretrain) -> None:
    """Runs the experiment and leaves its run folder."""
    began = time.monotonic()
    enable_compilation_cache()
    if config.weighting is not None:
        load = partial(load_text_inputs, config.data, config.corpus, seed=config.seed)
        folder, inputs = run_transferred(NAME, config, load, PRESETS[config.preset].training, began)
    else:
        prepared, inputs = _prepare(config)
        # The folder keeps the configuration as it was asked for: epochs of whatever text it is run on again.
        folder = run_methods(NAME, config, inputs, _methods(prepared, inputs), main="dwm", began=began)
    print(_sources(folder, inputs.sets.encoded["pool"]))


def to_check(folder: Path) -> CheckableRun:
    """Returns what `python -m bilevel.check` needs of a run: problem, state and estimator.

    Raises:
        InputError: a run that learns no weights, has no checkpoint, whose text changed, or of another version.
    """
    return network_run(folder, NAME, PRESETS, _prepare, _main)


def _prepare(config: DWMPretrain) -> tuple[DWMPretrain, Inputs]:
    """The configuration with its training in steps, and what it stands for."""
    inputs = load_text_inputs(config.data, config.corpus, config.model, config.seed)
    training = in_steps(config.training, PRESETS[config.preset].training, len(inputs.sets.encoded["pool"]))
    return replace(config, training=training), with_packing_notice(inputs, training.plan, config.seed)


def _methods(config: DWMPretrain, inputs: Inputs) -> Methods:
    """The methods of the table: DWM first, so that its results do not wait for the baselines."""
    row_losses, training = inputs.first_order, config.training
    upper = mean_loss(row_losses)
    faulty = np.array([bool(row.labels.get("fault")) for row in inputs.sets.encoded["pool"].rows])
    methods: dict[str, Method | Callable[[np.ndarray], Method]] = {"dwm": _main(config, inputs)}
    if config.baselines == "none":
        return methods
    methods["uniform"] = uniform_tuning(row_losses, upper, training)
    longer = replace(training, steps=training.steps + _extra_steps(config, inputs))
    methods["uniform_longer"] = uniform_tuning(row_losses, upper, longer)
    methods["shuffled"] = partial(shuffled_weights, config, inputs)
    if faulty.any():
        methods["clean_only"] = clean_only(row_losses, upper, training, faulty)
    return methods


def _main(config: DWMPretrain, inputs: Inputs) -> Method:
    problem, schedule = network_method(config, inputs)
    if config.population > 1:
        schedule = taught_by_population(schedule, config.population, config.reset_every)
    return leaving_snapshots(
        (problem, schedule),
        inputs,
        config.dwm,
        "",
        config.training.batch_rows,
        config.alarm,
        experiment=NAME,
        train=config.data.train,
        valid=config.data.valid,
        seed=config.seed,
    )


def _extra_steps(config: DWMPretrain, inputs: Inputs) -> int:
    """Plain steps for the compute of what DWM does beyond training: every member of a population takes its own."""
    model = sum(leaf.size for leaf in jax.tree.leaves(inputs.params))
    learning = replace(config.dwm, hypergradient_steps=config.dwm.hypergradient_steps * config.population)
    fused = inputs.first_order is not inputs.row_losses
    return extra_steps(config.training, learning, vocabulary(inputs.tokenizer), model, fused)


def _sources(folder: Path, pool: EncodedRows) -> str:
    """Mean weight of each source's documents after each stage, 1 being uniform."""
    columns = read_weights(folder / WEIGHTS)
    stages = sorted(
        (name for name in columns if name.startswith("weight_")),
        key=lambda name: int(name.rpartition("_")[2]),
    ) or ["weight"]
    sources = np.array([source_of(row) for row in pool.rows], dtype=object)
    lines = []
    for name in sorted(set(sources)):
        own = sources == name
        means = [columns[stage][own].mean() / columns[stage].mean() for stage in stages]
        lines.append((name, str(own.sum()), *(f"{mean:.3f}" for mean in means)))
    headings = [Column(stage, stage.replace("_", ", stage ")) for stage in stages]
    return align(("source",), [Column("rows", "rows"), *headings], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, PRESETS, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
