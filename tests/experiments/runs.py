"""The main job at its smallest size, and what it takes for two run folders to be the same."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest

from bilevel.report.model_card import FILE as CARD
from bilevel.schedule import CheckpointSaver
from experiments.bds_alpaca import main

SMALL = [
    *("--steps", "6", "--batch-rows", "16", "--upper-rows", "16", "--bds.outer-warmup", "2", "--seed", "3"),
    *("--width", "16", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--mlp-width", "16"),
    *("--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16"),
]


def stop_when_asked(monkeypatch: pytest.MonkeyPatch, asked: int) -> None:
    """Lets the run be asked to stop when it looks for the n-th time."""
    looks = iter(range(asked))
    monkeypatch.setattr(CheckpointSaver, "stopping", lambda self: next(looks, None) is None)


def same_run(one: Path, other: Path) -> None:
    """Asserts that two folders hold the same rows, weights, metrics, results and model, bit for bit."""
    for name in ("metrics.jsonl", "selected.jsonl", "rejected.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    same_outcome(one, other)
    assert (one / "model" / CARD).read_bytes() == (other / "model" / CARD).read_bytes()
    assert summary(one) == summary(other)


def same_outcome(one: Path, other: Path) -> None:
    """Asserts that the main methods of two runs left the same weights and the same model."""
    tables = [pyarrow.parquet.read_table(folder / "weights.parquet") for folder in (one, other)]
    assert tables[0].equals(tables[1])
    files = [
        sorted(p.name for p in (folder / "model").iterdir() if p.name != CARD) for folder in (one, other)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        assert (one / "model" / name).read_bytes() == (other / "model" / name).read_bytes(), name


def summary(folder: Path) -> dict:
    """What a run found, without the time that it took."""
    found = json.loads((folder / "summary.json").read_text())
    del found["seconds"]
    return found


def refuses(flags: list[str], said: str, capsys, tmp_path) -> None:
    """One line on standard error, a non-zero exit, and no run folder: nothing was begun."""
    assert main([*SMALL, *flags]) != 0
    error = capsys.readouterr().err
    *warnings, error = error.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "runs").exists()
