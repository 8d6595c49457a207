"""A run's folder at the run's start: fresh, or that of a run that goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilevel.data import write_rejected
from bilevel.runs.config_file import write_config
from bilevel.runs.run_facts import write_facts
from bilevel.runs.run_folder import create_run_folder, environment, write_environment
from bilevel.runs.run_record import check_inputs, has_begun, write_inputs
from bilevel.storage.fingerprint import fingerprint_rows, fingerprint_tree
from experiments.facts import run_facts
from experiments.inputs import Inputs

_KNOWN_AS = {
    "pool": "the training rows (--train)",
    "validation": "the trusted rows (--valid)",
    "test": "the held-out rows (--test)",
    "model": "the model (--model)",
}


def open_folder(
    experiment: str,
    config: Any,
    inputs: Inputs,
    methods: tuple[str, ...],
    main: str,
    also: Mapping[str, str],
) -> Path:
    """Makes the run folder and writes down what the run begins with; or checks that it goes on with the same.

    Args:
        experiment: the experiment's name.
        config: its configuration.
        inputs: rows, tokenizer and model.
        methods: names of the methods, in the order in which they run.
        main: the method whose weights, selection and model the folder keeps.
        also: fingerprints of what else the run depends on, by what a reader knows it as.

    Raises:
        InputError: the folder cannot be used, or rows or model are not those that its run began with.
    """
    folder = config.run.resume
    if folder is not None and has_begun(folder):
        check_same_inputs(folder, inputs, also)
        _say_what_changed(folder)
        return folder
    if folder is None:
        folder = create_run_folder("runs", experiment, config.preset, config.seed, config.run.run_dir)
    write_config(folder, config, experiment)
    write_environment(folder)
    write_rejected(folder / "rejected.jsonl", inputs.sets.rejected)
    write_facts(folder, run_facts(experiment, config, inputs, methods, main))
    write_inputs(folder, _fingerprints(inputs, also))
    for notice in inputs.sets.notices:
        print(f"note: {notice}", file=sys.stderr)
    return folder


def check_same_inputs(folder: Path, inputs: Inputs, also: Mapping[str, str]) -> None:
    """Raises InputError where rows, model or what else a run depends on are not those that it began with."""
    check_inputs(folder, _fingerprints(inputs, also), _KNOWN_AS)


def _fingerprints(inputs: Inputs, also: Mapping[str, str]) -> dict[str, str]:
    found = {name: fingerprint_rows(rows) for name, rows in inputs.sets.encoded.items()}
    return {**found, "model": fingerprint_tree((inputs.model.start, inputs.model.base)), **also}


def _say_what_changed(folder: Path) -> None:
    """Says when a run goes on where its numbers may come out otherwise, in their last digits."""
    path = folder / "environment.json"
    if not path.exists():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), environment()
    was, is_ = (
        {"jaxlib": found["packages"].get("jaxlib"), "devices": f"{found['devices']} x {found['device_kind']}"}
        for found in (before, now)
    )
    for name in was:
        if was[name] != is_[name]:
            print(
                f"note: the run began with {name} {was[name]}, and goes on with {is_[name]}: it will not be the same "
                "to the last bit",
                file=sys.stderr,
            )
