"""Data hyper-cleaning, the standard bilevel benchmark: `python -m experiments.hyper_cleaning --help`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from bilevel.core import (
    Batch,
    RowProblem,
    Weighting,
    alternating,
    conjugate_gradient,
    identity,
    implicit,
    penalty,
    unroll,
)
from bilevel.core.curvature import Curvature
from bilevel.core.solver import Level, Solver
from bilevel.errors import InputError
from bilevel.report import write_report
from bilevel.report.sections import Chart, Section, write_section
from bilevel.report.table import format_table
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.config_file import write_config
from bilevel.runs.run_facts import RunFacts, SetFacts, write_facts
from bilevel.runs.run_folder import create_run_folder, write_environment, write_summary
from bilevel.weighting import given, row_logits, separation_auc, uniform
from experiments.command import run_command
from experiments.noisy_digits import (
    NoisyDigits,
    accuracy,
    classifier,
    noisy_digits,
    row_losses,
    upper,
)

NAME = "hyper_cleaning"
EstimatorName = Literal["identity", "conjugate_gradient", "unroll", "penalty"]
_RATE = 0.1
_OUTER_RATE = 0.1
_UPPER_SHARE = 0.05


@dataclass(frozen=True)
class HyperCleaning:
    """Finds wrong labels among scikit-learn's digits by what they do to a few trusted ones.

    One weight a row is learned by four estimators of the hypergradient. Beside them stand training on all rows as they
    are (none), on the right ones alone, which only an oracle knows (clean only), on the trusted rows alone
    (validation only), and on both together (joint). Every method takes the same number of gradient steps.
    """

    preset: Literal["digits"] = "digits"
    """There is one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the sets, the wrong labels and the classifier; the table shows means over them."""
    estimators: tuple[EstimatorName, ...] = ("identity", "conjugate_gradient", "unroll", "penalty")
    """Which to run."""
    noise: float = 0.5
    """Share of the labels that are wrong."""
    rows: int = 900
    """Rows with noisy labels."""
    trusted: int = 100
    """Rows with right labels, for the upper level."""
    width: int = 32
    """Hidden units of the classifier; 0 for softmax regression."""
    outer_steps: int = 40
    """Steps of the weights. With many more they fit the few trusted rows, and wrong labels come back."""
    lower_steps: int = 20
    """Gradient steps of the classifier for each of them."""
    run_dir: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where to write; by default runs/hyper_cleaning-digits-sSEED[-n]."""


class Method(NamedTuple):
    """One way of training: a solver, the levels it moves, its lower rows, and whether it learns weights."""

    solver: Callable[[NoisyDigits], Solver]
    updates: tuple[Level, ...]
    lower_rows: Callable[[NoisyDigits], Batch]
    learned: bool


class Found(NamedTuple):
    """What a method found: after each outer step, and in the end."""

    accuracy: np.ndarray
    auc: np.ndarray | None
    seconds: float


def run(config: HyperCleaning) -> None:
    """Runs the experiment and leaves its run folder."""
    _check(config)
    began = time.monotonic()
    enable_compilation_cache()
    sets = {seed: noisy_digits(seed, config.rows, config.trusted, config.noise) for seed in config.seeds}
    methods = _methods(config)
    folder = create_run_folder("runs", NAME, config.preset, config.seeds[0], config.run_dir)
    write_config(folder, config, NAME)
    write_environment(folder)
    first = next(iter(sets.values()))
    sizes = {"pool": first.pool, "validation": first.trusted, "test": first.test}
    write_facts(
        folder,
        RunFacts(
            NAME,
            tuple(methods),
            sets={name: SetFacts("scikit-learn's digits", len(batch["y"])) for name, batch in sizes.items()},
        ),
    )
    found: dict[str, list[Found]] = {}
    for name, method in methods.items():
        found[name] = [_train(config, method, sets[seed], seed) for seed in config.seeds]
        print(f"{name}: {_line(found[name])}", file=sys.stderr)
    _write(folder, config, found, time.monotonic() - began)


def _check(config: HyperCleaning) -> None:
    for name in ("seeds", "estimators"):
        given_ = getattr(config, name)
        if not given_ or len(set(given_)) < len(given_):
            raise InputError(f"--{name} {' '.join(map(str, given_))}: give at least one, and none twice")
    if min(config.seeds) < 0:
        raise InputError(f"--seeds {min(config.seeds)} is negative; give 0 or more")
    for name, least in (("width", 0), ("outer_steps", 1), ("lower_steps", 1)):
        if getattr(config, name) < least:
            raise InputError(
                f"--{name.replace('_', '-')} must be at least {least}, not {getattr(config, name)}"
            )


def _methods(config: HyperCleaning) -> dict[str, Method]:
    """The methods of the table by name, baselines first."""
    logits = row_logits(config.rows, "sigmoid")
    inner = optax.sgd(_RATE)
    # Every step sees every row, so Adam's steps do not depend on how often a row was visited.
    outer = optax.adam(_OUTER_RATE)
    problem = RowProblem(row_losses, logits, upper)
    # The classifier is not convex: damping keeps the system positive.
    damped = Curvature(relative_damping=1e-2)
    learned = {
        "identity": alternating(problem, inner, outer, implicit(identity(_RATE))),
        "conjugate_gradient": alternating(problem, inner, outer, implicit(conjugate_gradient(10, damped))),
        "unroll": alternating(problem, inner, outer, unroll()),
        "penalty": penalty(problem, inner, outer, optax.constant_schedule(_UPPER_SHARE)),
    }

    def fixed(
        weighting: Callable[[NoisyDigits], Weighting], rows: Callable[[NoisyDigits], Batch] = lambda d: d.pool
    ) -> Method:
        def solver(digits: NoisyDigits) -> Solver:
            unmoved = RowProblem(row_losses, weighting(digits), upper)
            return alternating(unmoved, inner, optax.identity(), implicit(identity(1.0)))

        return Method(solver, ("inner",), rows, learned=False)

    return {
        "none": fixed(lambda digits: uniform()),
        "clean only": fixed(lambda digits: given(jnp.where(digits.wrong, 0.0, 1 / (1 - config.noise)))),
        "validation only": fixed(lambda digits: uniform(), lambda digits: digits.trusted),
        "joint": fixed(lambda digits: uniform(), _joint),
    } | {
        name: Method(
            partial(_always, learned[name]), ("inner", "outer"), lambda digits: digits.pool, learned=True
        )
        for name in config.estimators
    }


def _always(solver: Solver, digits: NoisyDigits) -> Solver:
    return solver


def _joint(digits: NoisyDigits) -> Batch:
    """Both sets in one, each counting half: trusted rows are repeated."""
    repeated = np.resize(np.arange(len(digits.trusted["y"])), len(digits.pool["y"]))
    both = {name: np.concatenate([digits.pool[name], digits.trusted[name][repeated]]) for name in ("x", "y")}
    return both | {"row_id": np.arange(len(both["y"]), dtype=np.int32)}


def _train(config: HyperCleaning, method: Method, digits: NoisyDigits, seed: int) -> Found:
    solver = method.solver(digits)
    lower = {name: jnp.asarray(value)[None, None] for name, value in method.lower_rows(digits).items()}
    lower = {name: jnp.broadcast_to(x, (config.lower_steps, *x.shape[1:])) for name, x in lower.items()}
    trusted = {name: jnp.asarray(value)[None] for name, value in digits.trusted.items()}

    @jax.jit
    def train(state: Any) -> tuple[Any, Any]:
        def step(state: Any, _: None) -> tuple[Any, Any]:
            state, _report = solver.step(state, lower, trusted, method.updates)
            return state, (accuracy(state.inner.inner, digits.test), state.outer.inner)

        return jax.lax.scan(step, state, None, length=config.outer_steps)

    key = jax.random.key(seed)
    state = solver.init(jax.random.fold_in(key, 1), classifier(jax.random.fold_in(key, 0), config.width))
    began = time.monotonic()
    _, (right, outer) = jax.block_until_ready(train(state))
    seconds = time.monotonic() - began
    auc = None
    if method.learned:  # logits order rows as their weights do
        tables = np.asarray(outer)
        auc = np.array([separation_auc(table[digits.wrong], table[~digits.wrong]) for table in tables])
    return Found(np.asarray(right), auc, seconds)


def _line(found: Sequence[Found]) -> str:
    """A method's line on the terminal while others still run."""
    final = np.mean([one.accuracy[-1] for one in found])
    auc = [one.auc[-1] for one in found if one.auc is not None]
    said = f"accuracy {final:.3f}" + (f", AUC {np.mean(auc):.3f}" if auc else "")
    return f"{said}, {np.mean([one.seconds for one in found]):.1f} s a seed"


def _write(folder: Path, config: HyperCleaning, found: Mapping[str, Sequence[Found]], seconds: float) -> None:
    lines: dict[str, dict[str, float | None]] = {
        name: {
            "test_accuracy": float(np.mean([one.accuracy[-1] for one in runs])),
            "wrong_label_auc": _mean_or_none([one.auc[-1] for one in runs if one.auc is not None]),
            "seconds": float(np.mean([one.seconds for one in runs])),
        }
        for name, runs in found.items()
    }
    write_summary(
        folder,
        {
            "experiment": NAME,
            "preset": config.preset,
            "seeds": list(config.seeds),
            "seconds": seconds,
            "methods": lines,
            "test_accuracy_by_seed": {
                name: [float(one.accuracy[-1]) for one in runs] for name, runs in found.items()
            },
        },
    )
    write_section(folder, NAME, _section(config, found))
    report = write_report(folder)
    print(format_table(lines))
    print(f"report: {report}")


def _section(config: HyperCleaning, found: Mapping[str, Sequence[Found]]) -> Section:
    steps = np.unique(np.linspace(1, config.outer_steps, min(50, config.outer_steps)).astype(int))

    def curve(values: np.ndarray) -> list[tuple[int, float]]:
        return [(int(step), float(values[step - 1])) for step in steps]

    right = {name: curve(np.mean([one.accuracy for one in runs], axis=0)) for name, runs in found.items()}
    found_auc = {name: [one.auc for one in runs if one.auc is not None] for name, runs in found.items()}
    auc = {name: curve(np.mean(curves, axis=0)) for name, curves in found_auc.items() if curves}
    return Section(
        "Hyper-cleaning",
        f"{config.rows} digits, {config.noise:.0%} of them with a wrong label, and {config.trusted} trusted ones; "
        f"means over {len(config.seeds)} seeds.",
        charts=(
            Chart("Accuracy on held-out digits", right, "outer step", "share of right answers"),
            Chart(
                "Wrong labels found",
                auc,
                "outer step",
                "AUC",
                "Chance that a right label weighs more than a wrong one; 0.5 is guessing.",
            ),
        ),
    )


def _mean_or_none(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, {"digits": HyperCleaning()}, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
