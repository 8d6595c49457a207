"""An upper objective from a user's own file: what it changes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bilevel.runs.weights import read_weights
from experiments.bds_alpaca import main
from tests.objectives import samples

OBJECTIVES = (
    samples.OBJECTIVES
    + """

def logits(params, batch, model):
    assert model.tokenizer.eos_token_id < model.config.vocab_size
    return jnp.mean(model.logits(params, batch) ** 2)
"""
)
SMALL = [
    *("--width", "16", "--heads", "2", "--kv-heads", "1", "--mlp-width", "16", "--vocab-size", "300"),
    *("--steps", "40", "--batch-rows", "16", "--upper-rows", "16", "--baselines", "none"),
    *("--learning-rate", "0.02", "--bds.upper-share", "0.5", "--bds.outer-warmup", "8", "--max-length", "40"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Rows that answer the same questions by yes and by no, pool and trusted rows alike, and objectives beside."""
    monkeypatch.chdir(tmp_path)
    for name, questions in (("train", range(32)), ("valid", range(100, 116))):
        rows = [
            {"instruction": f"Is {number} it?", "output": answer}
            for number in questions
            for answer in ("yes", "no")
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "goals.py").write_text(OBJECTIVES)
    return tmp_path


def command(function: str, *flags: str) -> list[str]:
    return [*SMALL, "--train", "train.jsonl", "--valid", "valid.jsonl", "--upper", function, *flags]


@pytest.mark.slow
def test_rows_gain_weight_by_what_the_objective_asks_for(folder):
    """Rows say yes and no in turn: the objective alone decides which of them are worth something."""
    for wanted in ("yes", "no"):
        where = str(folder / "goals.py") + f":{wanted}"
        assert main(command(where, "--run-dir", wanted)) == 0
    for name, chosen in (("yes", slice(0, None, 2)), ("no", slice(1, None, 2))):
        weights = np.asarray(read_weights(folder / name / "weights.parquet")["weight"])
        assert weights.mean() == pytest.approx(1.0, rel=1e-5)
        assert weights[chosen].mean() > 1.1


@pytest.mark.parametrize("function", [pytest.param("number", marks=pytest.mark.slow), "logits"])
def test_objectives_may_return_a_number_and_look_at_tokens_and_logits(function, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    assert main(command(f"goals:{function}", "--steps", "2", "--run-dir", "run")) == 0
    assert (folder / "run" / "weights.parquet").is_file()
