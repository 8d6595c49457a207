"""The data weighting model on Alpaca-style rows: `python -m experiments.dwm_alpaca --help`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bilevel.core.estimators import EstimatorName, EstimatorSettings
from bilevel.methods import (
    BDSSettings,
    TrainingSettings,
    bds,
    clean_only,
    extra_steps,
    uniform_tuning,
)
from bilevel.objectives import mean_loss
from bilevel.report.table import Column, align, method_title
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.timing import read_timings
from bilevel.schedule.checking import CheckableRun
from experiments.checking import network_run
from experiments.command import run_command
from experiments.dwm_config import PRESETS, DWMAlpaca
from experiments.inputs import Inputs, load_inputs, with_packing_notice
from experiments.options import in_steps
from experiments.session import Method, Methods, run_methods
from experiments.trained_network import (
    leaving_snapshots,
    network_method,
    run_transferred,
    shuffled_weights,
    vocabulary,
)

NAME = "dwm_alpaca"
LEARNED = ("tokens", "one_feature", "alignment", "row_logits")

# A network of tokens learns from many noisy measurements of few rows: a regression averages them, where the chain rule
# follows the largest. Its scores are fractions of a deviation, and need a low temperature to tell rows apart.
_OTHER_NETWORKS: dict[str, dict[str, Any]] = {
    "tokens": {"network": "tokens", "signal": "regression", "temperature": 0.3, "learning_rate": 1e-3},
    "one_feature": {"network": "loss"},
}


def run(config: DWMAlpaca) -> None:
    """Runs the experiment and leaves its run folder."""
    began = time.monotonic()
    enable_compilation_cache()
    if config.weighting is not None:
        load = partial(load_inputs, config.data, config.corpus, seed=config.seed, lora=config.lora)
        run_transferred(NAME, config, load, PRESETS[config.preset].training, began)
        return
    prepared, inputs = _prepare(config)
    # The folder keeps the configuration as it was asked for: epochs of whatever rows it is run on again.
    methods = _methods(prepared, inputs)
    folder = run_methods(NAME, config, inputs, methods, main="dwm", began=began, learned=LEARNED)
    print(_overhead(folder, tuple(methods)))


def to_check(folder: Path) -> CheckableRun:
    """Returns what `python -m bilevel.check` needs of a run: problem, state and estimator.

    Raises:
        InputError: a run that learns no weights, has no checkpoint, whose rows changed, or of another version.
    """
    return network_run(folder, NAME, PRESETS, _prepare, _main)


def _prepare(config: DWMAlpaca) -> tuple[DWMAlpaca, Inputs]:
    """The configuration with its training in steps, and what it stands for."""
    inputs = load_inputs(config.data, config.corpus, config.model, config.seed, config.lora)
    training = in_steps(config.training, PRESETS[config.preset].training, len(inputs.sets.encoded["pool"]))
    return replace(config, training=training), with_packing_notice(inputs, training.plan, config.seed)


def _methods(config: DWMAlpaca, inputs: Inputs) -> Methods:
    """The methods of the table: DWM first, so that its results do not wait for the baselines."""
    row_losses, training = inputs.first_order, config.training
    upper = mean_loss(row_losses)
    pool = inputs.sets.encoded["pool"]
    faulty = np.array([bool(row.labels.get("fault")) for row in pool.rows])

    def logits(settings: BDSSettings, name: EstimatorName) -> Method:
        return bds(
            inputs.row_losses,
            upper,
            len(pool),
            training,
            settings,
            config.top_share,
            inputs.first_order,
            EstimatorSettings(name),
        )

    methods: dict[str, Method | Callable[[np.ndarray], Method]] = {"dwm": _main(config, inputs)}
    if config.baselines == "none":
        return methods
    methods["uniform"] = uniform_tuning(row_losses, upper, training)
    methods["uniform_longer"] = uniform_tuning(row_losses, upper, _longer(config, inputs))
    methods["shuffled"] = partial(shuffled_weights, config, inputs)
    for name, changes in _OTHER_NETWORKS.items():
        methods[name] = network_method(config, inputs, **changes)
    # The derivative has no scale of its own to hold against an entropy term, and moves a softmax onto single rows.
    apart = replace(config.bds, weights="sigmoid", rule="sgd", rate=config.alignment_rate, entropy=0.0)
    methods["alignment"] = logits(apart, "optimizer_aware")
    methods["row_logits"] = logits(config.bds, "penalty_single")
    if faulty.any():
        methods["clean_only"] = clean_only(row_losses, upper, training, faulty)
    return methods


def _main(config: DWMAlpaca, inputs: Inputs) -> Method:
    return leaving_snapshots(
        network_method(config, inputs),
        inputs,
        config.dwm,
        inputs.template,
        config.training.batch_rows,
        config.alarm,
        experiment=NAME,
        train=config.data.train,
        valid=config.data.valid,
        seed=config.seed,
    )


def _longer(config: DWMAlpaca, inputs: Inputs) -> TrainingSettings:
    """Training for the steps whose compute is that of DWM's training and learning together."""
    model = sum(leaf.size for leaf in jax.tree.leaves((inputs.model.base, inputs.model.start)))
    fused = inputs.first_order is not inputs.row_losses
    extra = extra_steps(config.training, config.dwm, vocabulary(inputs.tokenizer), model, fused)
    return replace(config.training, steps=config.training.steps + extra)


def _overhead(folder: Path, methods: Sequence[str]) -> str:
    """What each method cost beside uniform fine-tuning, as its lines of `timings.json` add up."""
    parts = [part for attempt in read_timings(folder) for part in attempt]
    lines = []
    for method in methods:
        own = [part for part in parts if part.name == f"{method_title(method)}: train"]
        seconds, compiling = (sum(getattr(part, of) for part in own) for of in ("seconds", "compiling"))
        lines.append((method, seconds - compiling, compiling))
    uniform = {method: seconds for method, seconds, _ in lines}.get("uniform")
    columns = (
        Column("", "training, s", digits=1),
        Column("", "compiling, s", digits=1),
        Column("", "of uniform"),
    )
    cells = [
        (
            method_title(method),
            columns[0].text(seconds),
            columns[1].text(compiling),
            columns[2].text(seconds / uniform if uniform else None),
        )
        for method, seconds, compiling in lines
    ]
    return align(("method",), columns, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, PRESETS, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
