"""Models beside one another on tasks: `python -m experiments.evaluate --help`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

import models
from bilevel.core.ranges import check_ranges
from bilevel.data import Tokenizer, check_vocabulary, load_tokenizer
from bilevel.errors import InputError
from bilevel.evaluation import (
    Measured,
    PreparedTask,
    Reading,
    Task,
    evaluation_section,
    evaluation_text,
    read_tasks,
    write_measured,
)
from bilevel.evaluation.record import evaluation_record
from bilevel.layout import Layout, data_layout
from bilevel.model import as_model
from bilevel.report.model_card import MODEL
from bilevel.report.sections_page import write_sections_page
from bilevel.runs.command import run_command
from bilevel.runs.compilation_cache import enable_compilation_cache
from bilevel.runs.config_file import FILE, plain_config, read_raw_config, write_config
from bilevel.runs.run_folder import create_run_folder, is_used, write_environment, write_summary
from bilevel.schedule import Context
from bilevel.storage.ledger import Ledger
from experiments.loading import REFUSALS
from experiments.tasks import TaskFlags

NAME = "evaluate"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Evaluate:
    """Puts tasks to models, and says how they do with intervals, and how they differ on the same rows.

        python -m experiments.evaluate --model FOLDER --task arc_easy.jsonl lambada.jsonl
        python -m experiments.evaluate --model runs/NAME runs/OTHER --task test.jsonl generate:test.jsonl --out DIR

    A task is a file whose columns tell its kind, or KIND:FILE: multiple_choice (query, choices, gold), last_word
    (context, continuation), loss and generate (instructions with responses), refusal (prompts). docs/evaluation.md says
    what is measured and how.

    The folder holds report.html, summary.json (every metric with its interval, every difference), for each model and
    task MODEL/TASK.json and MODEL/TASK.parquet (a line a row), and the answers that were generated. Run again with the
    same --out, it generates only the answers that are missing.

    Attributes:
        model: Folders of models or adapters, runs (their model/), or names on the hub; the others are compared with
            the first.
        task: Files of tasks.
        out: Where to write; by default a new folder runs/evaluate-default-sSEED[-n].
        template: Wording around instructions: chat is the tokenizer's own, raw adds nothing; auto is chat for
            conversations if the tokenizer has a chat template, else plain.
        max_length: Most tokens that a model reads, by default as many as it is made for.
        batch_rows: Rows of a batch.
        dtype: What the models compute in.
        seed: Of answers that are drawn.
    """

    model: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER|RUN|NAME ...")] = ()
    task: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KIND:]FILE ...")] = ()
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    tasks: Annotated[TaskFlags, tyro.conf.OmitArgPrefixes] = field(default_factory=TaskFlags)
    template: Literal["auto", "plain", "alpaca", "dialogue", "chat", "raw"] = "auto"
    max_length: int | None = None
    batch_rows: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("max_length", self.max_length is None or self.max_length >= 3, "3 or more"),
            ("batch_rows", self.batch_rows >= 1, "1 or more"),
            ("seed", self.seed >= 0, "0 or more"),
        )


class Candidate(NamedTuple):
    """A model that is there, before its weights are read.

    Attributes:
        found: the model.
        adapter: folder of an adapter beside it, None for none.
        tokenizer: the model's.
        tasks: as it reads them.
    """

    found: models.Found
    adapter: Path | None
    tokenizer: Tokenizer
    tasks: tuple[PreparedTask, ...]


def run(config: Evaluate) -> None:
    """Evaluates, and leaves a folder."""
    for name, given in (("--model FOLDER", config.model), ("--task FILE", config.task)):
        if not given:
            raise InputError(f"there is nothing to evaluate: add {name}")
    tasks = read_tasks(config.task, config.tasks.options, config.tasks.limit)
    named = names_of(config.model)
    candidates = {name: candidate(place, tasks, config) for name, place in named.items()}
    folder = open_folder(config)
    for line in _notices(tasks, candidates):
        print(f"note: {line}", file=sys.stderr)
    enable_compilation_cache()
    layout = data_layout()
    with Ledger(folder / f"answers-{config.dtype}.jsonl") as ledger:
        found = {
            name: evaluate_model(name, chosen, config, layout, ledger, folder)
            for name, chosen in candidates.items()
        }
    write_summary(folder, {"experiment": NAME, "seed": config.seed, **evaluation_record(found)})
    facts = [f"{len(found)} models" if len(found) > 1 else str(config.model[0]), f"{len(tasks)} tasks"]
    page = folder / "report.html"
    write_sections_page(page, "Evaluation", facts, [evaluation_section(found)], plain_config(config))
    print(evaluation_text(found))
    print(f"report: {page}")


def _notices(tasks: Sequence[Task], candidates: Mapping[str, Candidate]) -> list[str]:
    """What was said of tasks as they were read, once, and then as each model reads them."""
    said = [f"{task.name}: {notice}" for task in tasks for notice in task.notices]
    said += [
        f"{task.name}: {notice}"
        for chosen in candidates.values()
        for task in chosen.tasks
        for notice in task.encoded.notices
    ]
    return list(dict.fromkeys(said))


def evaluate_model(
    name: str, chosen: Candidate, config: Evaluate, layout: Layout, ledger: Ledger, folder: Path
) -> dict[str, Measured]:
    """What one model makes of its tasks; its files are written as each is done."""
    language = models.load(
        chosen.found,
        lora=chosen.adapter,
        dtype=config.dtype,
        tokenizer=chosen.tokenizer,
        mesh=layout.mesh,
    )
    model = as_model(language)
    params = layout.replicate(model.params)
    context = Context(model, layout, config.seed, evaluation_rows=config.batch_rows, name=name)
    measured = {}
    for task in chosen.tasks:
        print(
            f"{name}: {task.name} ({task.task.kind.name}, {len(task.encoded.rows):,} rows)", file=sys.stderr
        )
        measured[task.name] = task.measure(params, context, ledger)
        write_measured(folder / name, measured[task.name])
    return measured


def candidate(place: Path, tasks: Sequence[Task], config: Evaluate) -> Candidate:
    """A model with its tokenizer and the tasks as it reads them, all but its weights.

    Raises:
        InputError, ModelError: no such model, none with a tokenizer, or a task that it cannot read.
    """
    folder = place / MODEL if (place / MODEL).is_dir() and not (place / "config.json").exists() else place
    adapter = None
    source: str | Path = folder
    if (folder / ADAPTER).exists() and not (folder / "config.json").exists():
        adapter = folder
        source = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    found = models.find(source, lora=adapter)
    assert found.folder is not None  # of a folder, or of a name on the hub
    own = adapter is not None and (adapter / "tokenizer.json").exists()
    tokenizer = load_tokenizer(adapter if own and adapter is not None else found.folder)
    check_vocabulary(tokenizer, found.config.vocab_size)
    longest = found.config.max_positions
    length = longest if config.max_length is None else min(longest, config.max_length)
    reading = Reading(tokenizer, length, config.template, config.tasks.too_long)
    return Candidate(found, adapter, tokenizer, tuple(task.prepared(reading) for task in tasks))


def names_of(places: Sequence[Path]) -> dict[str, Path]:
    """Models by short names: those of their folders, numbered where two are the same."""
    named: dict[str, Path] = {}
    for place in places:
        if place in named.values():
            raise InputError(f"--model {place} stands there twice; name it once")
        own = place.resolve().parent.name if place.name == MODEL else place.resolve().name
        name, number = own, 1
        while name in named:
            number += 1
            name = f"{own}-{number}"
        named[name] = place
    return named


def open_folder(config: Evaluate) -> Path:
    """The folder of an evaluation: a new one, or that of an earlier one whose answers are taken over.

    Raises:
        InputError: something else stands there.
    """
    folder = config.out
    if folder is None or not is_used(folder):
        folder = create_run_folder("runs", NAME, "default", config.seed, folder)
    elif not (folder / FILE).exists() or read_raw_config(folder).get("experiment") != NAME:
        raise InputError(f"{folder}: this folder holds something else; name another with --out")
    write_config(folder, config, NAME)
    write_environment(folder)
    return folder


def together(arguments: Sequence[str], flags: Sequence[str] = ("--model", "--task")) -> list[str]:
    """A command line in which what stands behind each of some flags stands behind its first one.

    >>> together(["--model", "a", "--seed", "1", "--model", "b"])
    ['--seed', '1', '--model', 'a', 'b']
    """
    gathered: dict[str, list[str]] = {flag: [] for flag in flags}
    others: list[str] = []
    taker: list[str] = others
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in gathered:
            taker = gathered[flag]
            taker += [value] if equals else []
        else:
            taker = others if argument.startswith("--") else taker
            taker.append(argument)
    return [*others, *(word for flag, words in gathered.items() if words for word in (flag, *words))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    given = together(list(sys.argv[1:] if arguments is None else arguments))
    return run_command(NAME, {"default": Evaluate()}, run, given, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
