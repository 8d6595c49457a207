"""What experiments with the data weighting model share: stages that can be looked into, and fair comparisons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bilevel.methods import Method, TrainingSettings, extra_steps, shuffled_weights, uniform_tuning
from bilevel.methods.dwm import describe
from bilevel.methods.stages import Origin, watched
from bilevel.model import token_count
from experiments.dwm_config import DWMAlpaca
from experiments.loading import Inputs
from experiments.pretrain_config import DWMPretrain


def in_stages(
    method: Method, inputs: Inputs, config: DWMAlpaca | DWMPretrain, batch_rows: int, experiment: str
) -> Method:
    """The method with a snapshot, and a look at what the weights prefer, at the end of each stage.

    Args:
        method: DWM.
        inputs: rows and model.
        config: the run's.
        batch_rows: rows of a training batch.
        experiment: its name.
    """
    pool = inputs.data["pool"]
    files = {name: getattr(config.data, name) for name in ("train", "valid")}
    origin = Origin(
        describe(config.dwm),
        inputs.language.tokenizer,
        inputs.data.template,
        pool.tokens.shape[1],
        batch_rows,
        {"rows": len(pool), "experiment": experiment, "seed": config.seed} | files,
    )
    return watched(method, origin, config.dwm.warmup_stages, config.alarm)


def compared_with(
    inputs: Inputs,
    config: DWMAlpaca | DWMPretrain,
    training: TrainingSettings,
    upper: Any,
    members: int = 1,
) -> dict[str, Method | Callable[[np.ndarray], Method]]:
    """Uniform weights for as many steps and for as much compute, and DWM's weights on other rows.

    Args:
        inputs: rows and model.
        config: the run's.
        training: of every method.
        upper: what is watched on trusted rows.
        members: inner models that teach the network, each with steps of its own.
    """
    model, language = inputs.model, inputs.language
    extra = extra_steps(
        training,
        replace(config.dwm, hypergradient_steps=config.dwm.hypergradient_steps * members),
        token_count(model),
        language.trained + language.frozen,
        fused=model.first_order is not model.row_losses,
    )
    given = {"upper": upper, "training": training}
    longer = given | {"training": replace(training, steps=training.steps + extra)}
    return {
        "uniform": uniform_tuning(model, inputs.data, **given),
        "uniform_longer": uniform_tuning(model, inputs.data, **longer),
        "shuffled": partial(shuffled_weights, model, inputs.data, seed=config.seed, **given),
    }
