"""The hyper-cleaning benchmark at its smallest size, as a user runs it."""

import json

import numpy as np
import pytest

from experiments.hyper_cleaning import main
from experiments.noisy_digits import noisy_digits

SMALL = ["--seeds", "0", "--rows", "100", "--trusted", "60", "--width", "0", "--outer-steps", "12"]


def test_sets_are_disjoint_and_wrong_labels_are_wrong():
    digits = noisy_digits(3, 200, 50, 0.5)
    rows = [batch["x"] for batch in (digits.pool, digits.trusted, digits.test)]
    assert [len(x) for x in rows] == [200, 50, 1797 - 250]
    right = noisy_digits(3, 200, 50, 1e-9)
    assert not right.wrong.any()
    assert np.array_equal(right.pool["y"] != digits.pool["y"], digits.wrong)
    assert 70 < digits.wrong.sum() < 130


def test_every_estimator_finds_wrong_labels(tmp_path, capsys):
    assert main([*SMALL, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    lines = summary["methods"]
    assert list(lines)[:4] == ["none", "clean only", "validation only", "joint"]
    for name in ("identity", "conjugate_gradient", "unroll", "penalty"):
        assert lines[name]["wrong_label_auc"] > 0.75
    assert lines["clean only"]["test_accuracy"] > lines["none"]["test_accuracy"]
    assert "Wrong labels found" in (tmp_path / "run/report.html").read_text()
    assert "identity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--noise", "1.5"], "--noise 1.5"),
        (["--rows", "1790", "--trusted", "50"], "--rows 1790"),
        (["--seeds", "1", "1"], "--seeds 1 1"),
        (["--lower-steps", "0"], "--lower-steps must be at least 1"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(tmp_path, capsys, flags, said):
    assert main([*flags, "--run-dir", str(tmp_path / "run")]) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "run").exists()
