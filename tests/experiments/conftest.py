"""One small run that many tests look at, and a folder of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments.runs import SMALL


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def bds_run(tmp_path_factory) -> Path:
    """A run of BDS and its baselines on the embedded corpus, which nobody stopped; tests leave it as it is."""
    from experiments.bds_alpaca import main

    folder = tmp_path_factory.mktemp("bds") / "run"
    assert main([*SMALL, "--run-dir", str(folder)]) == 0
    return folder
