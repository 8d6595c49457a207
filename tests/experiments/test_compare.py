from pathlib import Path

import pytest

from experiments.compare import main
from tests.report.invented_run import invent_rows, invent_run


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    names = []
    for seed in (0, 1):
        folder = tmp_path / f"run-s{seed}"
        folder.mkdir()
        invent_run(folder, invent_rows(10), methods=("bds",), steps=10, seed=seed)
        names.append(str(folder))
    return names


def test_the_table_is_printed_and_the_page_stands_beside_the_runs(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(runs) == 0
    said = capsys.readouterr().out
    assert "BDS     2" in said
    assert said.splitlines()[-1] == f"comparison: {tmp_path}/comparison.html"
    assert (tmp_path / "comparison.html").read_text().startswith("<!doctype html>")


def test_another_file_can_be_named(runs: list[str], tmp_path: Path) -> None:
    assert main([*runs, "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists()
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a comparison needs two runs"),
        (["RUN"], "a comparison needs two runs"),
        (["RUN", "RUN"], "are the same run"),
        (["RUN", "nowhere"], "nowhere: no such folder"),
        (
            ["RUN", "OTHER", "--out", "nowhere/page.html"],
            "nowhere: no such folder; name another file with --out",
        ),
        (["RUN", "OTHER", "--out", "."], "this is a folder; name a file in it with --out"),
        (["RUN", "OTHER", "--outt", "x"], "--outt"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_wrong_command_lines(
    arguments: list[str], said: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"RUN": runs[0], "OTHER": runs[1]}
    assert main([named.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
