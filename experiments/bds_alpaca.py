"""Bilevel data selection on Alpaca-style rows: `python -m experiments.bds_alpaca --help`."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from bilevel.core import RowProblem
from bilevel.core.estimators import Situation, unsound
from bilevel.data import arrange_rows
from bilevel.methods import bds, clean_only, direct_mixing, uniform_tuning, validation_only
from bilevel.methods.baselines import UpperFunction
from bilevel.objectives import mean_loss
from bilevel.runtime.compilation_cache import enable_compilation_cache
from bilevel.runtime.fingerprint import fingerprint_source
from bilevel.schedule import Schedule
from experiments.bds_config import (
    AUTHOR_WARNING,
    PRESETS,
    BDSAlpaca,
    check_author,
    check_weighting,
    presets_for,
)
from experiments.command import run_command
from experiments.inputs import Inputs, load_inputs, with_packing_notice
from experiments.options import in_steps
from experiments.session import Methods, run_methods
from experiments.trained_network import run_transferred
from experiments.user_objective import find_objective, upper_objective

NAME = "bds_alpaca"


def run(config: BDSAlpaca) -> None:
    """Runs the experiment and leaves its run folder."""
    began = time.monotonic()
    enable_compilation_cache()
    check_author(config)
    if config.weighting is not None:
        check_weighting(config)
        run_transferred(NAME, config, PRESETS[config.preset].training, began)
        return
    objective = find_objective(config.upper) if config.upper is not None else None
    inputs = load_inputs(config.data, config.corpus, config.model, config.seed, config.lora)
    pool_rows = len(inputs.sets.encoded["pool"])
    # The folder keeps the configuration as it was asked for: epochs of whatever rows it is run on again.
    training = in_steps(config.training, PRESETS[config.preset].training, pool_rows)
    if objective is not None and training.upper_packing is None:
        # Somebody's own function may count on one row a sequence.
        training = replace(training, upper_packing="off")
    inputs = with_packing_notice(inputs, training.plan, config.seed)
    methods = _methods(replace(config, training=training), inputs, objective)
    also = {} if objective is None else {"the file of --upper": fingerprint_source(objective)}
    run_methods(NAME, config, inputs, methods, main="bds", began=began, also=also)


def _methods(config: BDSAlpaca, inputs: Inputs, objective: Callable[..., Any] | None) -> Methods:
    """The methods of the table: BDS first, so that its results do not wait for the baselines."""
    row_losses = inputs.first_order
    upper = mean_loss(row_losses) if objective is None else _upper(config, inputs, objective)
    pool = inputs.sets.encoded["pool"]
    faulty = np.array([bool(row.labels.get("fault")) for row in pool.rows])
    training = config.training
    methods = {"bds": _bds(config, inputs, upper)}
    if config.baselines == "all":
        methods["uniform"] = uniform_tuning(row_losses, upper, training)
        methods["direct_mixing"] = direct_mixing(row_losses, upper, training, config.bds.upper_share)
        methods["validation_only"] = validation_only(row_losses, upper, training)
        if faulty.any():
            methods["clean_only"] = clean_only(row_losses, upper, training, faulty)
    return methods


def _upper(config: BDSAlpaca, inputs: Inputs, objective: Callable[..., Any]) -> UpperFunction:
    """The user's objective, tried on the first rows that it will see together."""
    rows, training = inputs.sets.encoded["validation"], config.training
    seen = np.arange(min(len(rows), training.upper_rows // training.accumulate))
    batch = arrange_rows(rows, seen[None], training.upper_packing or "off").batch(seen)
    outer = jnp.zeros(len(inputs.sets.encoded["pool"]))
    return upper_objective(str(config.upper), objective, inputs.objective_model, outer, inputs.params, batch)


def _bds(config: BDSAlpaca, inputs: Inputs, upper: UpperFunction) -> tuple[RowProblem, Schedule]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = bds(
            inputs.output_losses if config.hypergradient.curvature == "gauss_newton" else inputs.row_losses,
            upper,
            len(inputs.sets.encoded["pool"]),
            config.training,
            config.bds,
            config.top_share,
            inputs.first_order,
            config.hypergradient,
        )
    hard = np.mean([bool(row.labels.get("hard")) for row in inputs.sets.encoded["pool"].rows])
    said = [str(warning.message) for warning in caught]
    said += unsound(config.hypergradient, Situation(hard_share=float(hard)))
    if config.author:
        said = [AUTHOR_WARNING]
    for line in said:
        print(f"warning: {line}", file=sys.stderr)
    return method


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(NAME, presets_for(arguments), run, arguments)


if __name__ == "__main__":
    sys.exit(main())
