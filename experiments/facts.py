"""What a run sets out to do, gathered from its flags and inputs."""

from __future__ import annotations

from typing import Any

import jax

from bilevel.data import Row, choose_template
from bilevel.data.templates import Template
from bilevel.runs.run_facts import RunFacts, SetFacts
from experiments.inputs import Inputs

_FLAGS = {"pool": "train", "validation": "valid", "test": "test"}


def run_facts(experiment: str, config: Any, inputs: Inputs, methods: tuple[str, ...], main: str) -> RunFacts:
    """Returns what `run.json` holds.

    Args:
        experiment: the experiment's name.
        config: its configuration, with `data` and `model`.
        inputs: rows and model.
        methods: names of the methods, in the order in which they run.
        main: the method whose weights, selection and model the folder keeps.
    """
    sets = {}
    for name, rows in inputs.sets.encoded.items():
        file = getattr(config.data, _FLAGS.get(name, name), None)
        sets[name] = SetFacts("embedded corpus" if file is None else str(file), len(rows))
    trained = sum(leaf.size for leaf in jax.tree.leaves(inputs.params))
    return RunFacts(
        experiment=experiment,
        methods=methods,
        main=main,
        sets=sets,
        model="" if config.model.model is None else str(config.model.model),
        parameters=trained + sum(leaf.size for leaf in jax.tree.leaves(inputs.model.base)),
        trained=trained,
        prompt=_prompt(getattr(config.data, "template", None), inputs),
        notices=inputs.sets.notices,
    )


def _prompt(name: str | None, inputs: Inputs) -> str:
    """How prompts are worded, "" where the tokenizer's chat template words them, and for plain text."""
    if name is None:
        return ""
    template, _ = choose_template(name, inputs.sets.encoded["pool"].rows, inputs.tokenizer)
    return template.prompt(Row("", "{instruction}", "{input}", "")) if isinstance(template, Template) else ""
