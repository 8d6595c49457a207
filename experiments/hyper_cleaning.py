"""Data hyper-cleaning, the standard bilevel benchmark: `python -m experiments.hyper_cleaning --help`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro

from bilevel.core.ranges import check_ranges
from bilevel.data.corpus.digits import CLASSES, Digits, make_digits
from bilevel.layout import data_layout
from bilevel.methods import Method
from bilevel.methods.cleaning import (
    RESULT,
    WEIGHTS,
    CleaningSettings,
    EstimatorName,
    cleaning,
    cleaning_baselines,
    joined,
)
from bilevel.model import Model
from bilevel.objectives.classes import class_losses, right_classes
from bilevel.report import write_report
from bilevel.report.cleaning import Found, cleaning_lines, cleaning_section
from bilevel.report.sections import write_section
from bilevel.report.table import format_table
from bilevel.runs.command import run_command
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.config_file import write_config
from bilevel.runs.run_facts import RunFacts, SetFacts, write_facts
from bilevel.runs.run_folder import create_run_folder, write_environment, write_summary
from bilevel.schedule import Context, RunState, run_schedule
from bilevel.schedule.context import Kept
from bilevel.weighting import separation_auc
from models import classifier

NAME = "hyper_cleaning"
_RIDGE = 1e-2
_ROW_LOSSES, _EVALUATE = class_losses(classifier.logits, _RIDGE), right_classes(classifier.logits, _RIDGE)


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

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("width", self.width >= 0, "0 or more"),
            ("noise", 0 < self.noise < 1, "between 0 and 1"),
        )
        for name in ("seeds", "estimators"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"--{name} {' '.join(map(str, given))}: give at least one, and none twice")
        if min(self.seeds) < 0:
            raise ValueError(f"--seeds {min(self.seeds)} is negative; give 0 or more")
        self.settings  # noqa: B018  (checks them)

    @property
    def settings(self) -> CleaningSettings:
        """How long the methods run."""
        return CleaningSettings(self.outer_steps, self.lower_steps)


def run(config: HyperCleaning) -> None:
    """Runs the experiment and leaves its run folder."""
    began = time.monotonic()
    enable_compilation_cache()
    digits = {seed: make_digits(seed, config.rows, config.trusted, config.noise) for seed in config.seeds}
    folder = create_run_folder("runs", NAME, config.preset, config.seeds[0], config.run_dir)
    write_config(folder, config, NAME)
    write_environment(folder)
    found: dict[str, list[Found]] = {}
    kept = Kept()
    learned: dict[str, Method] = {
        name: cleaning(_model(config, 0), digits[config.seeds[0]].sets, name, config.settings)
        for name in config.estimators
    }
    for seed, sets in digits.items():
        model = _model(config, seed)
        baselines = cleaning_baselines(model, joined(sets.sets), sets.wrong, config.settings)
        for name, method in {**baselines, **learned}.items():
            found.setdefault(name, []).append(_trained(method, model, sets, seed, kept))
            print(f"seed {seed}, {name}: {_line(found[name][-1])}", file=sys.stderr)
    sizes = {name: len(rows) for name, rows in digits[config.seeds[0]].sets.items()}
    facts = {name: SetFacts("scikit-learn's digits", size) for name, size in sizes.items()}
    write_facts(folder, RunFacts(NAME, tuple(found), sets=facts))
    _write(folder, config, found, time.monotonic() - began)


def _model(config: HyperCleaning, seed: int) -> Model:
    key = jax.random.fold_in(jax.random.key(seed), 0)
    params = classifier.init(key, inputs=64, classes=CLASSES, width=config.width)
    return Model(_ROW_LOSSES, params, evaluate=_EVALUATE)


def _trained(method: Method, model: Model, digits: Digits, seed: int, kept: Kept) -> Found:
    """Runs a method, and reads its curves off the state that it ends in."""
    data = joined(digits.sets)
    # One device: the sets are small, and no number of devices need divide them.
    context = Context(
        model, data_layout(jax.devices()[:1]), seed, evaluation_rows=len(data["joint"]), kept=kept
    )
    began = time.monotonic()
    models = {"base": model.params, "current": model.params}
    state = run_schedule(method.schedule, RunState(models=models, data=data), context)
    seconds = time.monotonic() - began
    steps = range(1, len(method.schedule) + 1)
    accuracy = np.array([state.results[f"{RESULT}{step}"]["exact_match"] for step in steps])
    if f"{WEIGHTS}1" not in state.signals:
        return Found(accuracy, None, seconds)
    weights = [state.column(f"{WEIGHTS}{step}") for step in steps]
    auc = np.array([separation_auc(table[digits.wrong], table[~digits.wrong]) for table in weights])
    return Found(accuracy, auc, seconds)


def _line(found: Found) -> str:
    """A line on the terminal while other methods still run."""
    auc = "" if found.auc is None else f", AUC {found.auc[-1]:.3f}"
    return f"accuracy {found.accuracy[-1]:.3f}{auc}, {found.seconds:.1f} s"


def _write(folder: Path, config: HyperCleaning, found: Mapping[str, Sequence[Found]], seconds: float) -> None:
    lines = cleaning_lines(found)
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
    lead = (
        f"{config.rows} digits, {config.noise:.0%} of them with a wrong label, and {config.trusted} trusted ones; "
        f"means over {len(config.seeds)} seeds."
    )
    write_section(folder, NAME, cleaning_section(lead, found))
    report = write_report(folder)
    print(format_table(lines))
    print(f"report: {report}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    return run_command(NAME, {"digits": HyperCleaning()}, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
