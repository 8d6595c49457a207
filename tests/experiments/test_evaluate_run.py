"""A run whose methods' models are put to tasks at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bilevel.errors import InputError
from bilevel.evaluation import read_measured
from bilevel.report import compare, comparison_text
from experiments.bds_alpaca import main
from experiments.bds_config import BDSAlpaca
from experiments.dwm_config import DWMAlpaca
from experiments.iterit_config import IterITAlpaca
from experiments.pretrain_config import DWMPretrain
from experiments.tasks import EvaluationOptions
from experiments.transfer_config import Transfer
from tests.evaluation.asked import PASSAGES, QUESTIONS, write
from tests.experiments.runs import SMALL
from tests.report.html_page import Page


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("tasks")
    return [write(root, "questions.jsonl", *QUESTIONS), write(root, "passages.jsonl", *PASSAGES)]


@pytest.fixture(scope="module")
def run(tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    assert main([*SMALL, "--baselines", "none", "--evaluate", *tasks, "--run-dir", str(folder)]) == 0
    return folder


COLUMNS = [
    "questions/accuracy_norm",
    "questions/accuracy",
    "passages/accuracy",
    "passages/perplexity",
]


def test_the_numbers_stand_in_results_report_and_comparisons(run: Path) -> None:
    line = json.loads((run / "summary.json").read_text())["methods"]["bds"]
    assert [name for name in line if "/" in name] == COLUMNS
    found = read_measured(run / "evaluation" / "bds")
    assert line["passages/perplexity"] == found["passages"].values["perplexity"]
    page = Page(run / "report.html")
    assert "guessing gets 0.344 of these questions right" in page.text
    assert "passages: perplexity ↓" in page.text

    other = run.parent / "other"
    other.mkdir()
    for name in ("summary.json", "config.yaml", "run.json"):
        (other / name).write_text((run / name).read_text())
    assert "questions: accuracy ↑" in comparison_text(compare([run, other]))


def test_a_task_that_the_model_cannot_read_ends_the_run_before_it_begins(
    tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = write(tmp_path, "long.jsonl", {"context": "the cat " * 2000, "continuation": "sat"})
    for source, said in (
        ("nowhere.jsonl", "nowhere.jsonl: no such file"),
        (long, "task long: long.jsonl:1: "),
    ):
        assert main([*SMALL, "--evaluate", source, "--run-dir", str(tmp_path / "run")]) == 2
        (*_, line) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {said}")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [BDSAlpaca, DWMAlpaca, DWMPretrain, IterITAlpaca, Transfer])
def test_every_experiment_on_text_reads_tasks_before_it_reads_rows(flags: type) -> None:
    evaluation = flags(evaluation=EvaluationOptions(evaluate=("absent.jsonl",))).evaluation
    with pytest.raises(InputError, match=r"absent\.jsonl: no such file"):
        evaluation.read()
