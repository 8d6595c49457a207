"""Flags about tasks, and the job of an experiment whose models are asked them at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from bilevel.core.ranges import check_ranges
from bilevel.evaluation import (
    Answering,
    MultipleChoice,
    PreparedTask,
    Reading,
    Task,
    TaskOptions,
    read_tasks,
)
from bilevel.runs.job import Job, Record
from experiments.loading import Inputs


@dataclass(frozen=True)
class TaskFlags:
    r"""How tasks are read and answered.

    Attributes:
        limit: Most rows of each task, the first ones; by default all.
        max_new_tokens: Most tokens of a generated answer.
        temperature: Of generated answers: 0 takes the most probable token.
        top_k: Draw among so many most probable tokens.
        top_p: Draw among the fewest most probable tokens that hold this share of the probability.
        stop: Texts before which a generated answer is cut off.
        normalise: When a generated answer is the expected one: blanks compares texts but for blanks, squad also drops
            case, punctuation and articles.
        delimiter: What stands between a question and its choice in multiple choice; \n is a line break.
        too_long: Rows that the model cannot read whole: refuse the task, or cut the beginning of their prompts.
    """

    limit: int | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    normalise: Literal["blanks", "squad"] = "blanks"
    delimiter: str = MultipleChoice.delimiter
    too_long: Literal["refuse", "cut"] = "refuse"

    def __post_init__(self) -> None:
        check_ranges(self, ("limit", self.limit is None or self.limit >= 1, "1 or more"))
        _ = self.options  # refuses what is out of range

    @property
    def options(self) -> TaskOptions:
        """The same for `bilevel.evaluation`."""
        answering = Answering(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.stop)
        return TaskOptions(answering, self.normalise, self.delimiter.replace("\\n", "\n"))


@dataclass(frozen=True)
class EvaluationOptions(TaskFlags):
    """Tasks that the model of each method is asked at the end of the run.

    Attributes:
        evaluate: Files of tasks: questions with choices, passages with a last word, or rows of instructions with
            responses; KIND:FILE asks for another kind than the columns tell (generate, refusal, loss). See
            docs/evaluation.md.
    """

    evaluate: Annotated[tuple[str, ...], tyro.conf.arg(prefix_name=False, metavar="TASK ...")] = ()

    def read(self) -> tuple[Task, ...]:
        """The tasks, checked as far as they can be without a model; nothing is asked of one yet.

        Raises:
            InputError: a file that cannot be used.
        """
        return read_tasks(self.evaluate, self.options, self.limit)


def _prepared_tasks(tasks: tuple[Task, ...], flags: TaskFlags, inputs: Inputs) -> tuple[PreparedTask, ...]:
    """Tasks as the model of a run reads them.

    Args:
        tasks: what is asked.
        flags: how.
        inputs: the model, and rows whose wording the tasks share.

    Raises:
        InputError: a row is too long for the model.
    """
    template: Any = getattr(inputs.data, "template", "") or "auto"
    language = inputs.language
    reading = Reading(language.tokenizer, language.config.max_positions, template, too_long=flags.too_long)
    return tuple(task.prepared(reading) for task in tasks)


def job_with_tasks(
    methods: Mapping[str, Any],
    inputs: Inputs,
    config: Any,
    asked: tuple[Task, ...],
    record: Record,
    *,
    main: str,
    learned: tuple[str, ...] = (),
) -> Job:
    """The job of an experiment on text.

    Args:
        methods: as of `Job`.
        inputs: rows and model.
        config: the experiment's configuration, with `seed`, `evaluation` and `run`.
        asked: the tasks of its flags, read before the rows were.
        record: what the run's folder says of the run.
        main: as of `Job`.
        learned: as of `Job`.

    Raises:
        InputError: a row of a task is too long for the model.
    """
    return Job(
        methods,
        inputs.data,
        inputs.model,
        main=main,
        seed=config.seed,
        learned=learned,
        tasks=_prepared_tasks(asked, config.evaluation, inputs),
        layout=inputs.layout,
        checkpoints=config.run.checkpoints,
        record=record,
    )
