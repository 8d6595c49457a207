"""DWM at its smallest size, through its command line, as a user would."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bilevel.runs.weights import read_weights
from bilevel.weighting import effective_sample_size
from experiments.dwm_alpaca import main

SMALL = [
    *("--steps", "6", "--batch-rows", "16", "--upper-rows", "16", "--dwm.hypergradient-steps", "2"),
    *("--width", "8", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--mlp-width", "8"),
    *(
        "--dwm.stages",
        "2",
        "--dwm.encoder.width",
        "8",
        "--dwm.encoder.heads",
        "2",
        "--dwm.encoder.mlp-width",
        "8",
    ),
    *("--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16"),
]
METHODS = [
    *("dwm", "uniform", "uniform_longer", "shuffled"),
    *("tokens", "one_feature", "alignment", "row_logits", "clean_only"),
]


@pytest.mark.slow
def test_a_run_compares_the_network_with_what_its_parts_do_alone(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main([*SMALL, "--run-dir", str(folder)]) == 0
    lines = json.loads((folder / "summary.json").read_text())["methods"]
    assert list(lines) == METHODS
    learned = ["dwm", "tokens", "one_feature", "alignment", "row_logits"]
    for kind in ("fault", "truncated", "off_topic", "wrong_answer"):
        assert [name for name in METHODS if lines[name].get(f"{kind}_auc") is not None] == learned
    weights = read_weights(folder / "weights.parquet")["weight"]
    assert np.ptp(weights) > 0
    for name in ("dwm", "shuffled"):
        assert lines[name]["effective_sample_size"] == pytest.approx(float(effective_sample_size(weights)))
    said = capsys.readouterr().out
    assert "of uniform" in said
    assert said.count("uniform, DWM's compute") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dwm.hypergradient-steps", "0"], "hypergradient_steps must be 1 or more, not 0"),
        (["--dwm.stages", "0"], "stages must be 1 or more, not 0"),
        (["--dwm.floor", "1.0"], "floor must be in [0, 1), not 1.0"),
        (["--dwm.floor", "-0.5"], "floor must be in [0, 1), not -0.5"),
        (["--dwm.encoder.heads", "3"], "give a multiple of 6"),
    ],
)
def test_bad_flags_end_in_one_line(flags, message, capsys):
    assert main([*SMALL, *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
