"""What a step of a weight network costs, in training steps of its language model.

    python benchmarks/dwm.py [--repeats 30]

Lower and upper batches are of equal size. Times take turns, and medians are given; FLOPs are XLA's count of the
compiled programs, of a model of one layer, because XLA counts the body of a loop over layers once.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

import models
from bilevel.core import RowProblem, alternating, implicit, optimizer_aware
from bilevel.core.problem import Weighting
from bilevel.methods import TrainingSettings
from bilevel.objectives import mean_loss, response_losses
from bilevel.weighting import EncoderSettings, encoder, loss_scorer, network, uniform

CONFIG = models.DecoderConfig(vocab_size=1024, width=128, layers=4, heads=4, kv_heads=4, mlp_width=344)
NETWORK = EncoderSettings(width=32, layers=1, heads=2, mlp_width=64)
ROWS, LENGTH = 32, 64
TRAINING = "training step"
STEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    TRAINING: ("uniform", ("inner",)),
    "under a frozen network of tokens": ("tokens", ("inner",)),
    "network of tokens learns, committed": ("tokens", ("inner", "outer")),
    "network of tokens learns, virtual": ("tokens", ("outer",)),
    "under a frozen network of losses": ("losses", ("inner",)),
    "network of losses learns, committed": ("losses", ("inner", "outer")),
}


def batch(seed: int, axes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    held = {
        "tokens": rng.integers(0, CONFIG.vocab_size, (ROWS, LENGTH), np.int32),
        "segments": np.ones((ROWS, LENGTH), np.int32),
        "loss_mask": np.broadcast_to(np.arange(LENGTH) >= LENGTH // 2, (ROWS, LENGTH)),
        "row_id": np.arange(ROWS, dtype=np.int32),
    }
    return {name: value[(None,) * axes] for name, value in held.items()}


def compiled(config: models.DecoderConfig) -> dict[str, tuple[Any, tuple]]:
    """Each step's program, and what to call it with."""
    losses = response_losses(lambda params, batch: models.token_scores(params, batch, config))
    training = TrainingSettings(steps=1000, learning_rate=1e-3)
    params = models.init(config, jax.random.key(0))
    weightings: dict[str, Weighting] = {
        "uniform": uniform(),
        "tokens": network(encoder(config.vocab_size, NETWORK)),
        "losses": network(loss_scorer("relative")),
    }
    programs = {}
    for name, (weighting, updates) in STEPS.items():
        problem = RowProblem(losses, weightings[weighting], mean_loss(losses))
        solver = alternating(problem, training.optimizer(), optax.adam(1e-3), implicit(optimizer_aware()))
        arguments = (solver.init(jax.random.key(1), params), batch(0, 2), batch(1, 1))
        step = jax.jit(solver.step, static_argnames="updates")
        programs[name] = (step.lower(*arguments, updates=updates).compile(), arguments)
    return programs


def medians(programs: dict[str, tuple[Any, tuple]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, all taking turns so that a busy machine slows them alike."""
    calls: dict[str, Callable[[], object]] = {
        name: lambda program=program, arguments=arguments: jax.block_until_ready(program(*arguments))
        for name, (program, arguments) in programs.items()
    }
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    times = medians(compiled(CONFIG), repeats)
    counted = compiled(replace(CONFIG, layers=1))
    flops = {name: program.cost_analysis()["flops"] for name, (program, _) in counted.items()}
    print(
        f"{ROWS} rows of {LENGTH} tokens, {os.cpu_count()} cores, JAX {jax.__version__}, median of {repeats}"
    )
    print(f"{'':40} {'ms':>8} {'beyond training: time':>22} {'FLOPs':>8}")
    for name in STEPS:
        extra, extra_flops = (held[name] / held[TRAINING] - 1 for held in (times, flops))
        print(f"{name:40} {times[name]:8.1f} {extra:22.2f} {extra_flops:8.2f}")


if __name__ == "__main__":
    main()
