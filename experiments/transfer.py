"""Training at the weights of another run's network: `python -m experiments.transfer --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bilevel.errors import InputError
from bilevel.methods import Method, clean_only, transferred, uniform_tuning
from bilevel.objectives import mean_loss
from bilevel.report.source_table import source_table
from bilevel.runs.command import run_command
from bilevel.runs.configuration import read_run
from bilevel.runs.job import Job
from bilevel.runs.running import run_configured
from bilevel.storage.fingerprint import fingerprint_tree
from bilevel.storage.snapshots import Snapshot, check_tokenizer, read_snapshots
from experiments.bds_alpaca import labelled
from experiments.loading import REFUSALS, Inputs, load_documents, load_rows, record_of
from experiments.options import in_steps
from experiments.tasks import job_with_tasks
from experiments.transfer_config import PRESETS, Transfer, check_kind, presets_for, reads_text

NAME = "transfer"


def job_of(config: Transfer) -> Job:
    """Everything that a configuration stands for."""
    if config.weighting is None:
        raise InputError("there is no network to weight by: add --weighting RUN")
    snapshots = read_snapshots(config.weighting)
    check_kind(config, snapshots[0])
    asked = config.evaluation.read()
    inputs = _load(config, snapshots[-1])
    check_tokenizer(snapshots[0], inputs.language.tokenizer)
    model, data = inputs.model, inputs.data
    training = in_steps(config.training, PRESETS[config.preset].training, len(data["pool"]))
    given: dict[str, Any] = {"training": training, "upper": mean_loss(model.first_order)}
    main = transferred(
        model, data, snapshots=snapshots, top_share=config.top_share, devices=inputs.layout.shares, **given
    )
    methods: dict[str, Method] = {"transferred": main}
    if config.baselines == "all":
        methods["uniform"] = uniform_tuning(model, data, **given)
        faulty = labelled(inputs, "fault")
        if faulty.any():
            methods["clean_only"] = clean_only(model, data, faulty=faulty, **given)
    networks = fingerprint_tree([snapshot.parameters for snapshot in snapshots])
    record = record_of(NAME, config, inputs, training.plan, **{"the network of --weighting": networks})
    wording = _other_wording(snapshots[0], data.template)
    record = replace(record, notices=(*record.notices, *wording))
    return job_with_tasks(methods, inputs, config, asked, record, main="transferred")


def job_of_run(folder: Path) -> Job:
    """What `python -m bilevel.check` needs of a run.

    Raises:
        InputError: no such run, one of another version, or inputs that are gone.
    """
    return job_of(read_run(folder, NAME, PRESETS))


def _load(config: Transfer, snapshot: Snapshot) -> Inputs:
    """Rows as the network reads them, by its own tokenizer where the run names neither a model nor a tokenizer."""
    model = config.model
    if model.model is None and model.tokenizer is None:
        snapshot.tokenizer()  # says what is wrong with it
        model = replace(model, tokenizer=snapshot.folder / "tokenizer")
    if reads_text(snapshot):
        return load_documents(config.text, config.text_corpus, model, config.seed, config.lora)
    return load_rows(config.data, config.corpus, model, config.seed, config.lora)


def _other_wording(snapshot: Snapshot, template: str) -> list[str]:
    trained = snapshot.info.template
    if template == trained:
        return []
    return [
        f"the network was trained on rows worded by the template {trained}, these are worded by {template}; "
        f"--template {trained} words them alike"
    ]


def run(config: Transfer) -> None:
    """Runs the experiment and leaves its run folder."""
    finished = run_configured(job_of, config)
    if not getattr(finished.job.data, "template", ""):
        print(source_table(finished.folder, finished.job.data["pool"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(NAME, presets_for(arguments), run, arguments, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
