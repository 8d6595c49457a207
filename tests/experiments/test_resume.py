"""Runs that are stopped and continued, run again from their files, and refused where they should be."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal

import pytest

from bilevel.data.corpus import make_corpus
from bilevel.data.files import write_rows
from bilevel.runs import session
from bilevel.runs.metrics import MetricsWriter, read_metrics
from experiments.bds_alpaca import main
from tests.experiments.runs import SMALL, same_outcome, same_run, stop_when_asked, summary

ALONE = [*SMALL, "--baselines", "none"]


@pytest.fixture
def whole(bds_run):
    """A run that nobody stopped."""
    return bds_run


@pytest.fixture(scope="module")
def stopped_alone(tmp_path_factory):
    """A run of BDS alone, stopped after its fourth step, with a checkpoint before that."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        # It looks once while rows are scored, after each move and at every step but the last of a move.
        stop_when_asked(patch, 8)
        assert main([*ALONE, "--run-dir", str(folder), "--checkpoints.every-steps", "3"]) == 143
    return folder


@pytest.fixture
def stopped(stopped_alone, tmp_path):
    return shutil.copytree(stopped_alone, tmp_path / "stopped")


def lines(text):
    return text.strip().splitlines()


@pytest.mark.slow
def test_a_run_that_is_stopped_in_any_method_ends_as_the_one_that_was_not(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    for asked, flags in ((5, [*SMALL, "--run-dir", str(folder)]), (12, []), (9, [])):
        with monkeypatch.context() as patch:
            stop_when_asked(patch, asked)
            assert main([*flags, *(["--resume", str(folder)] if folder.exists() else [])]) == 143
    # The flags of the beginning may stand there again.
    assert main([*SMALL, "--run-dir", str(folder), "--resume", str(folder)]) == 0
    same_run(folder, whole)


def signal_at(step, number, monkeypatch):
    """Sends this process a signal when it writes the numbers of a step."""
    write = MetricsWriter.write

    def write_and_send(self, method, at, values):
        write(self, method, at, values)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(MetricsWriter, "write", write_and_send)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_continue(number, code, whole, monkeypatch, capsys, tmp_path):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        signal_at(3, number, patch)
        assert main([*ALONE, "--run-dir", "a folder"]) == code
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    said = lines(capsys.readouterr().err)[-1]
    assert said == (
        "stopped after step 4 and saved; continue with: python -m experiments.bds_alpaca --resume 'a folder'"
    )
    if number == signal.SIGINT:
        return
    _, _, command = said.partition("experiments.bds_alpaca ")
    assert main(shlex.split(command)) == 0
    assert "note: BDS continues after step 4 (checkpoint 1)" in capsys.readouterr().err
    same_outcome(tmp_path / "a folder", whole)
    assert [line["step"] for line in read_metrics(tmp_path / "a folder")["bds"]] == [1, 2, 3, 4, 5, 6]


def test_a_broken_checkpoint_costs_the_steps_since_the_one_before(stopped, whole, capsys):
    newest = max((stopped / "checkpoints" / "bds").glob("[0-9]*"))
    (newest / "notes" / "metadata").write_text("")
    assert main(["--resume", str(stopped)]) == 0
    said = capsys.readouterr().err
    assert f"note: {newest}: this checkpoint cannot be read (notes/metadata is damaged)" in said
    assert "note: BDS continues after step 3 (checkpoint 1)" in said
    same_outcome(stopped, whole)
    assert [line["step"] for line in read_metrics(stopped)["bds"]] == [1, 2, 3, 4, 5, 6]


def test_without_a_checkpoint_a_run_begins_anew_in_its_folder(stopped, whole, capsys):
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "rejected.jsonl").unlink()
    assert main(["--resume", str(stopped)]) == 0
    assert "note: BDS has no checkpoint and begins anew" in capsys.readouterr().err
    same_outcome(stopped, whole)
    assert [line["step"] for line in read_metrics(stopped)["bds"]] == [1, 2, 3, 4, 5, 6]
    assert (stopped / "rejected.jsonl").exists()


def refused(arguments, said, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for text in (said,) if isinstance(said, str) else said:
        assert text in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "7"], ["training.steps is 6 in ", "run/config.yaml and 7 here", "--resume"]),
        (["--seed", "4", "--bds.floor", "0.1"], ["seed is 3", "; bds.floor is 0.0"]),
        (["--run-dir", "elsewhere"], "continues there, not in --run-dir elsewhere"),
        (["--stepz", "7"], "--stepz"),
        (["--checkpoints.keep-last", "0"], "keep_last must be at least 1"),
    ],
    ids=str,
)
def test_flags_that_disagree_with_the_run_are_refused_by_name(flags, said, whole, capsys):
    refused(["--resume", str(whole), *flags], said, capsys)


def test_a_finished_run_says_so(whole, capsys, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    # How often a run is saved changes nothing that comes out of it: such flags may differ.
    assert main(["--resume", str(whole), "--seed", "3", "--checkpoints.every-steps", "9"]) == 0
    assert capsys.readouterr().out == f"{whole}: this run is finished; see {whole / 'report.html'}\n"
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    (tmp_path / "latest").symlink_to(whole)
    assert main([f"--resume={tmp_path / 'latest'}"]) == 0
    assert capsys.readouterr().out.startswith(f"{whole}: ")


def test_folders_that_are_no_run_of_this_experiment_are_refused(stopped, tmp_path, capsys):
    refused(["--resume", "nowhere"], "nowhere: no such run folder", capsys)
    refused(["--resume", str(tmp_path)], "config.yaml: no such file", capsys)
    config = stopped / "config.yaml"
    config.write_text(config.read_text().replace("experiment: bds_alpaca", "experiment: dwm"))
    refused(
        ["--resume", str(stopped)], ["belongs to the experiment 'dwm'", "python -m experiments.dwm"], capsys
    )


def test_other_rows_or_another_model_are_refused(tmp_path, capsys, monkeypatch):
    corpus = make_corpus(0, rows=40, valid=16, test=16)
    write_rows(tmp_path / "train.jsonl", corpus.train)
    write_rows(tmp_path / "valid.jsonl", corpus.valid)
    objective = "from bilevel.core import Mean\n\n\ndef upper(params, batch, model):\n"
    (tmp_path / "mine.py").write_text(f"{objective}    return model.row_losses(params, batch)\n")
    with monkeypatch.context() as patch:
        stop_when_asked(patch, 3)
        files = ["--train", "train.jsonl", "--valid", "valid.jsonl", "--upper", "mine.py:upper"]
        assert main([*ALONE, *files, "--run-dir", "run"]) == 143
    capsys.readouterr()
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join([lines[1], lines[0], *lines[2:]]))
    refused(["--resume", "run"], "the training rows (--train) changed since the run began", capsys)
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "mine.py").write_text(f"{objective}    return model.row_losses(params, batch)  # better\n")
    refused(["--resume", "run"], "the file of --upper changed since the run began", capsys)


def test_a_run_is_run_again_from_its_configuration(whole, tmp_path):
    # Other flags change what the file says.
    assert main(["--config", str(whole / "config.yaml"), "--baselines", "none"]) == 0
    again = tmp_path / "runs" / "bds_alpaca-tiny-s3"
    same_outcome(again, whole)
    assert summary(again) == summary(whole) | {"methods": {"bds": summary(whole)["methods"]["bds"]}}
    configured = (whole / "config.yaml").read_text().replace("baselines: all", "baselines: none")
    assert (again / "config.yaml").read_text() == configured


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "preset: tiny\ntraining:\n  stepps: 7\n",
            "mine.yaml:3: training.stepps is no option of TrainingSettings (meant is probably training.steps)",
        ),
        ("experiment: dwm\npreset: tiny\n", "belongs to the experiment 'dwm'"),
        ("run:\n  resume: somewhere\n", "mine.yaml:2: run.resume is a flag of the command line"),
        ("training: {steps: 0}\n", "mine.yaml:1: training is impossible: steps must be 1 or more, not 0"),
        ("training: [\n", "mine.yaml: broken YAML"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_its_line(text, said, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text)
    refused(["--config", "mine.yaml"], said, capsys)


def test_two_sets_of_defaults_are_refused(whole, capsys):
    refused(["--config", str(whole), "--preset", "tiny"], "--preset and --config both", capsys)
    refused(["--config", "nowhere.yaml"], "nowhere.yaml: no such file", capsys)


def test_help_says_how_a_run_is_continued_and_run_again(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--resume", "--config", "--run-dir"):
        assert f"{flag} " in text
    for option in ("every-seconds", "every-steps", "keep-last", "keep-best"):
        assert f"--checkpoints.{option}" in text


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("metrics", marks=pytest.mark.slow),
        "model",
        pytest.param("summary", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_ends_the_run_with_a_word_and_it_can_go_on(place, stopped, whole, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise FULL

    with monkeypatch.context() as patch:
        if place == "metrics":
            written = MetricsWriter.write
            patch.setattr(
                MetricsWriter,
                "write",
                lambda self, method, step, values: (
                    fail() if step == 5 else written(self, method, step, values)
                ),
            )
        elif place == "model":
            patch.setattr("models.LanguageModel.write", fail)
        else:
            patch.setattr(session, "write_summary", fail)
        assert main(["--resume", str(stopped)]) == 1
    said = lines(capsys.readouterr().err)[-1]
    assert said.startswith(f"error: {stopped}")
    assert "no space left (" in said
    assert said.endswith(
        f"make room there, then continue with: python -m experiments.bds_alpaca --resume {stopped}"
    )
    assert main(["--resume", str(stopped)]) == 0
    same_outcome(stopped, whole)
