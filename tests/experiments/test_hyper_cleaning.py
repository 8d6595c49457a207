"""The hyper-cleaning benchmark at its smallest size, as a user runs it."""

import json

import pytest

from experiments.hyper_cleaning import main

SMALL = ["--seeds", "0", "--rows", "100", "--trusted", "60", "--width", "0", "--outer-steps", "12"]


def found(tmp_path, *estimators):
    """Results of a run with these estimators."""
    assert main([*SMALL, "--estimators", *estimators, "--run-dir", str(tmp_path / "run")]) == 0
    lines = json.loads((tmp_path / "run/summary.json").read_text())["methods"]
    assert list(lines) == ["none", "clean only", "validation only", "joint", *estimators]
    for name in estimators:
        assert lines[name]["wrong_label_auc"] > 0.75
    assert lines["none"]["wrong_label_auc"] is None
    assert lines["clean only"]["test_accuracy"] > lines["none"]["test_accuracy"]
    return lines


def test_a_run_finds_wrong_labels_and_shows_it(tmp_path, capsys):
    found(tmp_path, "identity")
    assert "Wrong labels found" in (tmp_path / "run/report.html").read_text()
    assert "identity" in capsys.readouterr().out


@pytest.mark.slow
def test_every_estimator_finds_wrong_labels(tmp_path):
    found(tmp_path, "conjugate_gradient", "unroll", "penalty")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--noise", "1.5"], "noise must be between 0 and 1, not 1.5"),
        (["--rows", "1790", "--trusted", "50"], "rows 1790"),
        (["--seeds", "1", "1"], "--seeds 1 1"),
        (["--lower-steps", "0"], "lower_steps must be 1 or more, not 0"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(tmp_path, capsys, flags, said):
    assert main([*flags, "--run-dir", str(tmp_path / "run")]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "run").exists()
