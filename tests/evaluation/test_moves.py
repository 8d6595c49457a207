"""Tasks inside schedules and at the end of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from bilevel.errors import InputError
from bilevel.evaluation import TaskOptions, read_measured
from bilevel.evaluation.answers import Answering
from bilevel.evaluation.task import PreparedTask
from bilevel.report.sections import read_sections
from bilevel.runs.evaluating import leave_evaluation, task_numbers
from bilevel.schedule import Evaluate, Keep, Round, RunState, Stopped, lower, run_schedule
from tests.evaluation.asked import PASSAGES, PROMPTS, context, language, model, prepared, write

PARAMS = language().params
OTHER = jax.tree.map(lambda x: 2 * x, PARAMS)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedTask, ...]:
    folder = tmp_path_factory.mktemp("tasks")
    options = TaskOptions(Answering(max_new_tokens=4))
    passages = prepared(write(folder, "passages.jsonl", *PASSAGES), options)
    many = [{**PROMPTS[number % 3], "prompt": f"say {number}"} for number in range(12)]
    return passages, prepared("refusal:" + write(folder, "prompts.jsonl", *many), options)


def start(params=PARAMS) -> RunState:
    return RunState(models={"base": params, "current": params})


def test_a_schedule_asks_and_reads_the_numbers(tasks) -> None:
    rounds = (
        Round((Evaluate("", tasks=tasks), Keep("best", when=lower("passages", "perplexity")))),
        Round((Evaluate("", "base", tasks=tasks[:1]),)),
    )
    found = run_schedule(rounds, start(), context())
    expected = tasks[0].measure(PARAMS, context()).values
    assert found.results["passages"] == expected
    assert found.results["kept best: passages"] == expected
    assert set(found.results["prompts_refusal"]) == {"refusal_rate", "ended", "tokens"}


def test_two_results_of_one_name_are_refused(tasks) -> None:
    with pytest.raises(ValueError, match="two evaluations are called 'passages'"):
        run_schedule((Round((Evaluate("", tasks=(tasks[0], tasks[0])),)),), start(), context())


def test_a_model_that_cannot_answer_is_refused_before_anything_runs(tasks) -> None:
    silent = replace(model(), generate=None)
    with pytest.raises(
        InputError, match="the kind refusal needs the model's generate, which this model does not"
    ):
        run_schedule((Round((Evaluate("", tasks=tasks),)),), start(), context(silent))


class StopsOnce:
    """The saver of a run that is asked to stop once something has been generated."""

    def __init__(self, asked: list[int]):
        self.asked = asked

    def stopping(self) -> bool:
        return bool(self.asked)

    def due(self, step: int) -> bool:
        return False

    def save(self, state: RunState) -> None:
        self.saved = state


def test_a_stopped_run_asks_only_what_is_missing(tasks, tmp_path: Path) -> None:
    asked: list[int] = []

    def generate(params, prompts, keys, sampling, **how):
        asked.append(len(prompts))
        return language().generate(params, prompts, keys, sampling, **how)

    told = context(
        replace(model(), generate=generate, generate_each=None), evaluation_rows=1, folder=tmp_path
    )
    schedule = (Round((Evaluate("", tasks=tasks[1:]),)),)
    saver = StopsOnce(asked)
    with pytest.raises(Stopped):
        run_schedule(schedule, start(), replace(told, saver=saver))
    assert asked == [8]
    found = run_schedule(schedule, saver.saved, told)
    assert asked == [8, 4]
    assert found.results["prompts_refusal"] == tasks[1].measure(PARAMS, context()).values


def test_a_run_leaves_rows_numbers_and_a_section_of_all_methods(tasks, tmp_path: Path) -> None:
    line: dict[str, float | None] = {}
    for name, params in (("bds", PARAMS), ("uniform", OTHER)):
        told = context(folder=tmp_path, name=name)
        found = run_schedule((Round((Evaluate("", tasks=tasks),)),), start(params), told)
        line = task_numbers(tasks, found.results)
    assert list(line) == ["passages/accuracy", "passages/perplexity", "prompts_refusal/refusal_rate"]
    leave_evaluation(tmp_path, ("bds", "uniform"), tasks)
    measured = read_measured(tmp_path / "evaluation" / "uniform")
    assert line["passages/perplexity"] == measured["passages"].values["perplexity"]
    ((method, section),) = read_sections(tmp_path)
    assert (method, section.title) == ("all methods", "Tasks")
    assert [table.title for table in section.tables] == ["passages", "prompts_refusal", "Differences"]
    assert [line[0] for line in section.tables[1].lines] == [
        *("BDS", "BDS, safe", "BDS, unsafe", "uniform SFT", "uniform SFT, safe", "uniform SFT, unsafe"),
    ]
    stored = json.loads((tmp_path / "evaluation" / "bds" / "passages.json").read_text())
    assert stored["metrics"]["perplexity"]["rows"] == 3
