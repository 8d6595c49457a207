"""Weights & Biases in its offline mode, which writes what it would send into a log of records."""

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bilevel.errors import InputError
from bilevel.runs.metrics import MetricsWriter
from bilevel.runs.wandb_sink import WandbSink, check_wandb

wandb = pytest.importorskip("wandb")
wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")

BLOCK, HEADER = 32768, 7


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A run folder; W&B's process ends with the test."""
    home = tmp_path / "home"
    home.mkdir()
    for name, value in {"WANDB_MODE": "offline", "HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_CACHE_DIR", "set, so that it is restored")
    monkeypatch.delenv("WANDB_CACHE_DIR")
    folder = tmp_path / "run"
    folder.mkdir()
    yield folder
    wandb.teardown()
    assert [path for path in home.rglob("*") if path.is_file()] == []
    os.environ.pop("WANDB_CACHE_DIR", None)


def test_lines_and_results_reach_wandb_and_nothing_leaves_the_folder(offline: Path) -> None:
    sink = WandbSink(offline, "project", {"training": {"steps": 2}})
    with MetricsWriter(offline, events=False, also=[sink]) as metrics:
        metrics.write("bds", 1, {"lower_loss": 2.0, "note": "text"})
        metrics.write("bds", 2, {"lower_loss": 1.5, "skipped_steps": 0})
        metrics.write("uniform", 1, {"lower_loss": 0.25})
        sink.summarise({"bds": {"test_loss": 0.5, "fault_auc": None}})
    (run,) = runs(offline)
    assert (run["project"], run["id"]) == ("project", json.loads((offline / "wandb.json").read_text())["id"])
    assert run["config"]["training"] == {"steps": 2}
    assert run["metrics"]["bds/*"] == "bds/step"
    assert [
        {key: value for key, value in line.items() if not key.startswith(("_run", "_time"))}
        for line in run["history"]
    ] == [
        {"_step": 0, "bds/step": 1, "bds/lower_loss": 2.0},
        {"_step": 1, "bds/step": 2, "bds/lower_loss": 1.5, "bds/skipped_steps": 0},
        {"_step": 2, "uniform/step": 1, "uniform/lower_loss": 0.25},
    ]
    assert run["summary"]["results/bds/test_loss"] == 0.5
    assert "results/bds/fault_auc" not in run["summary"]
    assert run["exit"] == 0


def test_a_continued_run_goes_on_in_the_same_wandb_run(offline: Path) -> None:
    def interrupted() -> None:
        with MetricsWriter(offline, events=False, also=[WandbSink(offline, "p", {})]) as metrics:
            for step in (1, 2, 3):
                metrics.write("bds", step, {"lower_loss": float(step)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with MetricsWriter(offline, events=False, also=[WandbSink(offline, "p", {})]) as metrics:
        lines = (offline / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        metrics.cut(sum(map(len, lines[:2])), "bds", 2)
        metrics.write("bds", 3, {"lower_loss": 3.0})
        metrics.write("bds", 4, {"lower_loss": 4.0})
    first, second = runs(offline)
    assert first["id"] == second["id"]
    assert (first["exit"], second["exit"]) == (1, 0)
    assert [line["_step"] for line in first["history"]] == [0, 1, 2]
    assert [(line["_step"], line["bds/step"]) for line in second["history"]] == [(2, 3), (3, 4)]


def test_another_project_is_another_wandb_run(offline: Path) -> None:
    for project in ("one", "two"):
        WandbSink(offline, project, {}).close(failed=False)
    first, second = runs(offline)
    assert first["id"] != second["id"]
    (offline / "wandb.json").write_text("{")
    with pytest.raises(InputError, match=r"wandb.json: names no W&B run"):
        WandbSink(offline, "one", {})


def test_what_wandb_refuses_is_said_in_one_line(offline: Path) -> None:
    with pytest.raises(InputError, match=r"^--wandb a/b: .*WANDB_MODE=offline") as caught:
        WandbSink(offline, "a/b", {})
    assert "\n" not in str(caught.value)


def test_a_missing_package_or_account_is_said_before_time_is_spent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_wandb()
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="not installed; install it with: pip install wandb"):
            check_wandb()
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"No API key configured.* set WANDB_MODE=offline") as caught:
        check_wandb()
    assert "\n" not in str(caught.value)
    wandb.teardown()


def runs(folder: Path) -> list[dict]:
    """What each offline run wrote, in the order of their starts; W&B's own process writes, and may lag behind."""
    last_look = time.monotonic() + 30
    while True:
        found = [read_run(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
        if all("exit" in run for run in found) or time.monotonic() > last_look:
            return found
        time.sleep(0.1)


def read_run(path: Path) -> dict:
    found: dict = {"history": [], "summary": {}, "config": {}, "metrics": {}}
    for record in records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found |= {"id": record.run.run_id, "project": record.run.project}
            found["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            found["history"].append(
                {key_of(item): json.loads(item.value_json) for item in record.history.item}
            )
        elif kind == "summary":
            found["summary"] |= {key_of(item): json.loads(item.value_json) for item in record.summary.update}
        elif kind == "metric" and record.metric.glob_name:
            found["metrics"][record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def key_of(item: object) -> str:
    return item.key or ".".join(item.nested_key)


def records(content: bytes) -> list:
    """LevelDB's log format: blocks of fragments, each with checksum, length and kind."""
    found, position, fragments = [], HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        fragments += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last fragment
            found.append(wandb_internal_pb2.Record.FromString(fragments))
            fragments = b""
    return found
