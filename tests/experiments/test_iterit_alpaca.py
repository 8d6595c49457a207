"""IterIT at its smallest size, through its command line, as a user would."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bilevel.runs.weights import read_weights
from experiments.iterit_alpaca import main
from tests.experiments.runs import same_run, stop_when_asked

SMALL = [
    *("--width", "8", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--mlp-width", "8"),
    *("--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16", "--vocab-size", "300"),
    *("--batch-rows", "8", "--upper-rows", "8", "--max-length", "48"),
    *("--iterit.share", "0.25", "--iterit.epochs", "2", "--iterit.limit", "2"),
    *("--iterit.pool-factor", "3"),
    *("--iterit.experience", "0.5", "--iterit.experience-steps", "2"),
]
METHODS = [
    "iterit",
    "static_ratio_and_diversity",
    "static_ratio",
    "random_share",
    "longest_share",
    "random_anew",
    "full_data",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iterit") / "run"
    assert main([*SMALL, "--baselines", "none", "--run-dir", str(folder)]) == 0
    return folder


def test_a_run_leaves_its_choices_signals_and_report(alone):
    weights = read_weights(alone / "weights.parquet")
    used = weights["weight"] * 24 / 48  # two epochs of twelve rows
    assert sorted(set(np.round(used, 5))) <= [0, 1, 2]
    assert used.sum() == pytest.approx(24)
    assert not np.isnan(weights["complexity_1"]).any()
    assert (~np.isnan(weights["complexity_2"])).sum() == 36  # three times twelve
    selected = [json.loads(line) for line in (alone / "selected.jsonl").read_text().splitlines()]
    assert len(selected) == 12
    assert {"id", "complexity_1", "complexity_2", "complexity_1_conditional"} <= set(weights)
    assert len(list((alone / "signals").iterdir())) == 2
    assert json.loads((alone / "summary.json").read_text())["steps"] == 2 + 4
    page = (alone / "report.html").read_text()
    assert "What each epoch chose" in page
    assert "share of the hardest that were not hard at the start" in page


def test_a_run_that_is_stopped_goes_on_to_the_same_rows_and_model(alone, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_when_asked(patched, 11)
        assert main([*SMALL, "--baselines", "none", "--run-dir", str(folder)]) != 0
    assert main(["--resume", str(folder)]) == 0
    same_run(folder, alone)


@pytest.mark.slow
def test_a_run_compares_iterit_with_rows_that_are_chosen_once(tmp_path):
    folder = tmp_path / "run"
    assert main([*SMALL, "--run-dir", str(folder)]) == 0
    lines = json.loads((folder / "summary.json").read_text())["methods"]
    assert list(lines) == METHODS
    assert {
        round(line["effective_sample_size"])
        for name, line in lines.items()
        if name not in ("iterit", "random_anew")
    } == {12, 48}
    # All methods that measure the same model share what it said.
    assert len(list((folder / "signals").iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--iterit.share", "0"], "share must be in (0, 1], not 0.0"),
        (["--iterit.share", "1.5"], "share must be in (0, 1], not 1.5"),
        (["--iterit.share", "0.01"], "a share of 0.01 of 48 rows is not one row"),
        (["--steps", "30"], "give --iterit.share and --iterit.epochs in place of --steps or --epochs"),
        (["--epochs", "2"], "give --iterit.share and --iterit.epochs in place of --steps or --epochs"),
        (["--iterit.experience-steps", "0"], "give both, or neither"),
    ],
)
def test_bad_flags_end_in_one_line(flags, message, capsys):
    assert main([*SMALL, *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
