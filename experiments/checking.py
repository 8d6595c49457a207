"""Runs as `python -m bilevel.check` wants them: read back from their folders, with where they stand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bilevel.core import EstimatorSettings
from bilevel.errors import InputError
from bilevel.schedule.checking import CheckableRun, check_point
from experiments.configuration import read_run
from experiments.inputs import Inputs
from experiments.session import Method, standing
from experiments.trained_network import network_method
from models.errors import ModelError

Prepared = TypeVar("Prepared")


def read_learned(
    folder: Path, experiment: str, presets: Mapping[str, Any], prepare: Callable[[Any], Prepared]
) -> tuple[Any, Prepared]:
    """Returns the configuration of a run that learned its weights, and what that stands for.

    Args:
        folder: the run folder.
        experiment: the experiment's name.
        presets: its presets.
        prepare: loads what a configuration stands for.

    Raises:
        InputError: no such run, one whose weights were given, one of another version, or inputs that are gone.
    """
    config = read_run(folder, experiment, presets)
    if config.weighting is not None:
        raise InputError(f"{folder}: weights were given, not learned; check the run that they come from")
    try:
        return config, prepare(config)
    except ModelError as error:
        raise InputError(str(error)) from error


def network_run(
    folder: Path,
    experiment: str,
    presets: Mapping[str, Any],
    prepare: Callable[[Any], tuple[Any, Inputs]],
    main: Callable[[Any, Inputs], Method],
) -> CheckableRun:
    """Returns a run of DWM at its newest checkpoint.

    Args:
        folder: the run folder.
        experiment: the experiment's name.
        presets: its presets.
        prepare: from a configuration to the same with its training in steps, and the inputs.
        main: from these two to what ran.

    Raises:
        InputError: a run that learns no weights, has no checkpoint, whose rows changed, or of another version.
    """
    config, (prepared, inputs) = read_learned(folder, experiment, presets, prepare)
    _, schedule = main(prepared, inputs)
    state, context = standing(folder, config, inputs, "dwm", schedule)
    if config.dwm.signal != "exact":
        print(
            f"note: the network learns from the signal {config.dwm.signal}, which is no gradient of the trusted loss; "
            "the derivative that the signal is made of is checked",
            file=sys.stderr,
        )
    exact, _ = network_method(prepared, inputs, signal="exact")
    point = check_point(schedule, state, context, prepared.training.optimizer())
    if config.dwm.hypergradient == "unroll":
        return CheckableRun(exact, point, EstimatorSettings("unroll"), state.step, config.dwm.unroll_steps)
    return CheckableRun(exact, point, EstimatorSettings("optimizer_aware"), state.step)
