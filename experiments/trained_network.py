"""Trained weight networks in and out of experiments: runs that leave snapshots, and runs that one weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bilevel.core import RowProblem
from bilevel.data import Tokenizer
from bilevel.errors import InputError
from bilevel.layout.devices import AXIS, data_mesh
from bilevel.methods import TrainingSettings, clean_only, dwm, fixed_weights, uniform_tuning
from bilevel.methods.dwm import DWMSettings, describe
from bilevel.methods.stages import Origin, watched
from bilevel.methods.transfer import transferred
from bilevel.objectives import mean_loss
from bilevel.schedule import Schedule
from bilevel.storage.snapshots import Snapshot, check_tokenizer, read_snapshots
from experiments.inputs import Inputs, with_packing_notice
from experiments.options import ModelOptions, in_steps
from experiments.session import Method, Methods, run_methods

TRANSFERRED = "transferred"


def vocabulary(tokenizer: Tokenizer) -> int:
    """Returns the rows that an embedding of a tokenizer's tokens needs."""
    return max(tokenizer.get_vocab().values()) + 1


def network_method(config: Any, inputs: Inputs, **changes: Any) -> Method:
    """Returns DWM as a run's configuration asks for it.

    Args:
        config: with `training` in steps, `dwm` and `top_share`.
        inputs: rows, tokenizer and model.
        **changes: of the settings of DWM.
    """
    return dwm(
        inputs.row_losses,
        mean_loss(inputs.first_order),
        vocabulary(inputs.tokenizer),
        config.training,
        replace(config.dwm, **changes),
        config.top_share,
        inputs.first_order,
        data_mesh().shape[AXIS],
    )


def shuffled_weights(config: Any, inputs: Inputs, weights: np.ndarray) -> Method:
    """The same weights on other rows: what their spread alone does, at exactly the same effective sample size."""
    table = np.random.default_rng(config.seed).permutation(weights)
    return fixed_weights(inputs.first_order, mean_loss(inputs.first_order), config.training, table)


def leaving_snapshots(
    method: tuple[RowProblem, Schedule],
    inputs: Inputs,
    settings: DWMSettings,
    template: str,
    batch_rows: int,
    alarm: float,
    **trained_on: Any,
) -> tuple[RowProblem, Schedule]:
    """Returns DWM with a snapshot, and a look at what the weights prefer, at the end of each stage.

    Args:
        method: DWM.
        inputs: rows, tokenizer and model.
        settings: of DWM.
        template: wording around the rows; "" for plain text.
        batch_rows: rows of a training batch.
        alarm: effective sample size, as a share of the rows, below which weights count as collapsed.
        **trained_on: what the snapshots say of the run, plain values.
    """
    problem, schedule = method
    pool = inputs.sets.encoded["pool"]
    origin = Origin(
        describe(settings),
        inputs.tokenizer,
        template,
        pool.tokens.shape[1],
        batch_rows,
        {"rows": len(pool)} | trained_on,
    )
    return problem, watched(problem, schedule, origin, settings.warmup_stages, alarm)


def run_transferred(
    experiment: str,
    config: Any,
    load: Callable[[ModelOptions], Inputs],
    default: TrainingSettings,
    began: float,
) -> tuple[Path, Inputs]:
    """Runs training at the weights of a trained network, beside uniform training; nothing is learned about rows.

    A run that names neither model nor tokenizer takes the network's own tokenizer.

    Args:
        experiment: the experiment's name.
        config: its configuration, with `weighting`.
        load: loads rows and model, from what is said of the model.
        default: training settings of the preset, for `in_steps`.
        began: `time.monotonic()` at the run's start.

    Returns:
        The run folder, and the rows and model that it ran on.

    Raises:
        InputError: snapshots that cannot be used, or not with these rows.
    """
    snapshots = read_snapshots(config.weighting)
    inputs = load(_with_tokenizer(config.model, snapshots[-1]))
    check_tokenizer(snapshots[0], inputs.tokenizer)
    _check_rows(snapshots[0], inputs)
    pool = inputs.sets.encoded["pool"]
    training = in_steps(config.training, default, len(pool))
    inputs = with_packing_notice(inputs, training.plan, config.seed)
    row_losses = inputs.first_order
    upper = mean_loss(row_losses)
    methods: dict[str, tuple[RowProblem, Schedule]] = {
        TRANSFERRED: transferred(
            row_losses, upper, snapshots, training, config.top_share, data_mesh().shape[AXIS]
        )
    }
    if config.baselines != "none":
        methods["uniform"] = uniform_tuning(row_losses, upper, training)
        faulty = np.array([bool(row.labels.get("fault")) for row in pool.rows])
        if faulty.any():
            methods["clean_only"] = clean_only(row_losses, upper, training, faulty)
    chosen: Methods = methods
    return run_methods(experiment, config, inputs, chosen, main=TRANSFERRED, began=began), inputs


def _with_tokenizer(model: ModelOptions, snapshot: Snapshot) -> ModelOptions:
    if model.model is not None or model.tokenizer is not None:
        return model
    snapshot.tokenizer()
    return replace(model, tokenizer=snapshot.folder / "tokenizer")


def _check_rows(snapshot: Snapshot, inputs: Inputs) -> None:
    info = snapshot.info
    if bool(info.template) != bool(inputs.template):
        text, rows = "plain text", "instruction rows"
        its, these, run = (rows, text, "dwm_pretrain") if info.template else (text, rows, "dwm_alpaca")
        raise InputError(
            f"{snapshot.folder}: its network was trained on {its}, and cannot weight {these}; name a run of {run}"
        )
    if inputs.template != info.template:
        print(
            f"note: the network was trained on rows worded by the template {info.template}, these are worded by "
            f"{inputs.template}; --template {info.template} words them alike",
            file=sys.stderr,
        )
