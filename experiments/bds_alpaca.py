"""Bilevel data selection on Alpaca-style rows: `python -m experiments.bds_alpaca --help`."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bilevel.core import RowProblem
from bilevel.core.estimators import Situation, unsound
from bilevel.data import arrange_rows
from bilevel.methods import bds, clean_only, direct_mixing, uniform_tuning, validation_only
from bilevel.methods.baselines import UpperFunction
from bilevel.methods.bds import upper_share
from bilevel.objectives import mean_loss
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.schedule import Schedule
from bilevel.schedule.checking import CheckableRun, check_point
from bilevel.storage.fingerprint import fingerprint_source
from experiments.bds_config import (
    AUTHOR_WARNING,
    PRESETS,
    BDSAlpaca,
    check_author,
    check_weighting,
    presets_for,
)
from experiments.checking import read_learned
from experiments.command import run_command
from experiments.inputs import Inputs, load_inputs, with_packing_notice
from experiments.options import in_steps
from experiments.session import Methods, run_methods, standing
from experiments.trained_network import run_transferred
from experiments.user_objective import find_objective, upper_objective

NAME = "bds_alpaca"
_LEAST_SHARE = 1e-3
"""Of the upper level, so that the weight of the lower one stays finite."""


def run(config: BDSAlpaca) -> None:
    """Runs the experiment and leaves its run folder."""
    began = time.monotonic()
    enable_compilation_cache()
    check_author(config)
    if config.weighting is not None:
        check_weighting(config)
        load = partial(load_inputs, config.data, config.corpus, seed=config.seed, lora=config.lora)
        run_transferred(NAME, config, load, PRESETS[config.preset].training, began)
        return
    prepared = _prepare(config)
    # The folder keeps the configuration as it was asked for: epochs of whatever rows it is run on again.
    methods = _methods(prepared)
    run_methods(NAME, config, prepared.inputs, methods, main="bds", began=began, also=prepared.also)


def to_check(folder: Path) -> CheckableRun:
    """Returns what `python -m bilevel.check` needs of a run: problem, state and estimator.

    Raises:
        InputError: a run that learns no weights, has no checkpoint, whose rows changed, or of another version.
    """
    config, prepared = read_learned(folder, NAME, PRESETS, _prepare)
    problem, schedule = _bds(prepared)
    state, context = standing(folder, config, prepared.inputs, "bds", schedule, prepared.also)
    point = check_point(schedule, state, context, prepared.config.training.optimizer())
    share = upper_share(prepared.config.training, config.bds, len(prepared.inputs.sets.encoded["pool"]))
    gamma = 1 / max(float(share(state.step)), _LEAST_SHARE) - 1
    estimator = replace(config.hypergradient, gamma=max(gamma, _LEAST_SHARE))
    return CheckableRun(problem, point, estimator, state.step, config.bds.lower_steps)


class _Prepared(NamedTuple):
    """A configuration with its training in steps, and what it stands for."""

    config: BDSAlpaca
    inputs: Inputs
    objective: Callable[..., Any] | None

    @property
    def also(self) -> dict[str, str]:
        """Fingerprints of what the run depends on besides rows and model."""
        return {} if self.objective is None else {"the file of --upper": fingerprint_source(self.objective)}


def _prepare(config: BDSAlpaca) -> _Prepared:
    objective = find_objective(config.upper) if config.upper is not None else None
    inputs = load_inputs(config.data, config.corpus, config.model, config.seed, config.lora)
    training = in_steps(config.training, PRESETS[config.preset].training, len(inputs.sets.encoded["pool"]))
    if objective is not None and training.upper_packing is None:
        # Somebody's own function may count on one row a sequence.
        training = replace(training, upper_packing="off")
    inputs = with_packing_notice(inputs, training.plan, config.seed)
    return _Prepared(replace(config, training=training), inputs, objective)


def _methods(prepared: _Prepared) -> Methods:
    """The methods of the table: BDS first, so that its results do not wait for the baselines."""
    config, inputs, _ = prepared
    row_losses, training = inputs.first_order, config.training
    methods = {"bds": _bds(prepared)}
    if config.baselines == "all":
        upper = methods["bds"][0].upper
        faulty = np.array([bool(row.labels.get("fault")) for row in inputs.sets.encoded["pool"].rows])
        methods["uniform"] = uniform_tuning(row_losses, upper, training)
        methods["direct_mixing"] = direct_mixing(row_losses, upper, training, config.bds.upper_share)
        methods["validation_only"] = validation_only(row_losses, upper, training)
        if faulty.any():
            methods["clean_only"] = clean_only(row_losses, upper, training, faulty)
    return methods


def _upper(prepared: _Prepared) -> UpperFunction:
    """The trusted rows' mean loss, or the user's objective, tried on the first rows that it will see together."""
    config, inputs, objective = prepared
    if objective is None:
        return mean_loss(inputs.first_order)
    rows, training = inputs.sets.encoded["validation"], config.training
    seen = np.arange(min(len(rows), training.upper_rows // training.accumulate))
    batch = arrange_rows(rows, seen[None], training.upper_packing or "off").batch(seen)
    outer = jnp.zeros(len(inputs.sets.encoded["pool"]))
    return upper_objective(str(config.upper), objective, inputs.objective_model, outer, inputs.params, batch)


def _bds(prepared: _Prepared) -> tuple[RowProblem, Schedule]:
    config, inputs, _ = prepared
    upper = _upper(prepared)
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
