"""Models put to tasks from the command line, and by runs at their end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import models
from bilevel.evaluation import read_measured
from experiments.evaluate import Evaluate, main, names_of, together
from tests.evaluation.asked import PASSAGES, QUESTIONS, ROWS, write
from tests.experiments.model_folder import write_model
from tests.report.html_page import Page

MORE = ["--max-new-tokens", "4", "--batch-rows", "8"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models of one form, with other weights."""
    root = tmp_path_factory.mktemp("models")
    write_model(root / "first", max_positions=96)
    write_model(root / "second", max_positions=96, init_std=0.5)
    return [str(root / "first"), str(root / "second")]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("tasks")
    rows = write(root, "rows.jsonl", *ROWS)
    return [
        write(root, "questions.jsonl", *QUESTIONS),
        write(root, "passages.jsonl", *PASSAGES),
        rows,
        f"generate:{rows}",
        f"refusal:{rows}",
    ]


@pytest.fixture(scope="module")
def evaluated(two: list[str], tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["--model", *two, "--task", *tasks, "--out", "out", *MORE]) == 0
    return folder / "out"


NAMES = ["questions", "passages", "rows", "rows_generate", "rows_refusal"]


def test_a_folder_holds_numbers_rows_and_a_page(evaluated: Path) -> None:
    summary = json.loads((evaluated / "summary.json").read_text())
    assert list(summary["models"]) == ["first", "second"]
    for model, of_model in summary["models"].items():
        assert list(of_model) == NAMES
        found = read_measured(evaluated / model)
        for task, metrics in of_model.items():
            assert found[task].values == pytest.approx({name: one["value"] for name, one in metrics.items()})
            assert all(one["low"] <= one["value"] <= one["high"] for one in metrics.values())
            table = pyarrow.parquet.read_table(evaluated / model / f"{task}.parquet")
            assert table.num_rows == 3
    one, other = (read_measured(evaluated / model)["rows"].columns["nll"] for model in ("first", "second"))
    assert not np.allclose(one, other)
    differences = {(line["task"], line["metric"]): line for line in summary["differences"]}
    loss = differences["rows", "loss"]
    assert (loss["model"], loss["from"]) == ("second", "first")
    values = [summary["models"][model]["rows"]["loss"]["value"] for model in ("second", "first")]
    assert loss["value"] == pytest.approx(values[0] - values[1])
    page = Page(evaluated / "report.html")
    assert page.pictures == 5
    assert "second - first" in page.text
    assert "guessing gets 0.344 of these questions right" in page.text
    assert all(reference.startswith("#") for reference in page.references)


def test_run_again_it_generates_nothing_and_says_the_same(
    evaluated: Path,
    two: list[str],
    tasks: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*args: object, **how: object) -> None:
        raise AssertionError("answers are generated again")

    before = (evaluated / "summary.json").read_text()
    monkeypatch.setattr(models.LanguageModel, "generate_each", refuse)
    monkeypatch.chdir(evaluated.parent)
    assert main(["--model", *two, "--task", *tasks, "--out", "out", *MORE]) == 0
    assert (evaluated / "summary.json").read_text() == before
    said = capsys.readouterr().out
    assert "rows_generate" in said
    assert "second - first" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "there is nothing to evaluate: add --model FOLDER"),
        (["--model", "MODEL"], "there is nothing to evaluate: add --task FILE"),
        (["--model", "nowhere", "--task", "TASK"], "nowhere"),
        (["--model", "MODEL", "--task", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--model", "MODEL", "MODEL", "--task", "TASK"], "stands there twice"),
        (["--model", "MODEL", "--task", "TASK", "--max-new-tokens", "0"], "max_new_tokens must be 1 or more"),
        (["--model", "MODEL", "--task", "TASK", "--top-p", "0"], "top_p must be above 0"),
        (["--model", "MODEL", "--task", "TASK", "--limit", "0"], "limit must be 1 or more"),
        (
            ["--model", "MODEL", "--task", "TASK", "--max-length", "8"],
            "are more than the 8 that the model reads",
        ),
        (["--model", "MODEL", "--task", "TASK", "--out", "USED"], "this folder holds something else"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    flags: list[str],
    said: str,
    two: list[str],
    tasks: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, "mine.txt", {})
    named = {"MODEL": two[0], "TASK": tasks[0], "USED": str(tmp_path)}
    assert main([named.get(flag, flag) for flag in flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "runs").exists()


def test_models_are_called_by_their_folders() -> None:
    named = names_of([Path("a/llama"), Path("b/llama"), Path("runs/x/model")])
    assert list(named) == ["llama", "llama-2", "x"]


def test_flags_may_come_once_or_again() -> None:
    assert together(["--task", "a", "b", "--out", "x", "--task=c"]) == ["--out", "x", "--task", "a", "b", "c"]
    assert Evaluate().tasks.options.delimiter == "\nAnswer: "
