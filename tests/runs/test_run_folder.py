import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.errors import InputError
from bilevel.runs.run_folder import (
    create_run_folder,
    environment,
    read_summary,
    write_environment,
    write_summary,
)


def test_runs_of_one_setting_are_numbered_and_latest_points_to_the_last(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    folders = [create_run_folder(root, "bds_alpaca", "tiny", 0) for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "bds_alpaca-tiny-s0",
        "bds_alpaca-tiny-s0-2",
        "bds_alpaca-tiny-s0-3",
    ]
    assert (root / "latest").is_symlink()
    assert (root / "latest").resolve() == folders[-1].resolve()
    other = create_run_folder(root, "bds_alpaca", "tiny", 1)
    assert (root / "latest").resolve() == other.resolve()
    assert not [path for path in root.iterdir() if path.name.startswith(".")]


def test_latest_moves_with_the_folder_of_runs(tmp_path: Path) -> None:
    create_run_folder(tmp_path / "runs", "e", "p", 0)
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest").resolve() == (tmp_path / "moved" / "e-p-s0").resolve()


def test_named_folder_may_be_anywhere_and_be_empty(tmp_path: Path) -> None:
    name = tmp_path / "elsewhere" / "mine"
    name.mkdir(parents=True)
    folder = create_run_folder(tmp_path / "runs", "e", "p", 0, name)
    assert folder == name
    assert (tmp_path / "runs" / "latest").resolve() == name.resolve()


def test_named_folder_that_holds_something_is_refused_and_untouched(tmp_path: Path) -> None:
    name = tmp_path / "mine"
    name.mkdir()
    (name / "result.txt").write_text("precious")
    with pytest.raises(InputError, match=r"mine: the run folder is not empty; .*--run-dir"):
        create_run_folder(tmp_path / "runs", "e", "p", 0, name)
    assert (name / "result.txt").read_text() == "precious"
    assert not (tmp_path / "runs" / "latest").exists()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*cannot create the run folder.*--run-dir"):
        create_run_folder(tmp_path / "file" / "runs", "e", "p", 0)


def test_without_links_latest_is_a_file_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    create_run_folder(tmp_path, "e", "p", 0)
    create_run_folder(tmp_path, "e", "p", 0)
    assert (tmp_path / "latest").read_text() == "e-p-s0-2\n"


def test_summary_keeps_numbers_and_turns_what_json_lacks_into_null(tmp_path: Path) -> None:
    write_summary(
        tmp_path,
        {
            "steps": np.int64(3),
            "methods": {"bds": {"test_loss": jnp.float32(0.5), "fault_auc": float("nan"), "hard_auc": None}},
        },
    )
    expected = {"steps": 3, "methods": {"bds": {"test_loss": 0.5, "fault_auc": None, "hard_auc": None}}}
    assert read_summary(tmp_path) == expected


def test_failing_to_write_a_summary_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_summary(tmp_path, {"steps": 1})

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_summary(tmp_path, {"steps": 2})
    assert read_summary(tmp_path) == {"steps": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_environment_names_versions_devices_and_cores(tmp_path: Path) -> None:
    write_environment(tmp_path)
    written = json.loads((tmp_path / "environment.json").read_text())
    assert written == environment()
    assert written["packages"]["jax"].startswith("0.")
    assert written["devices"] == 8
    assert 1 <= written["cores"] <= (os.cpu_count() or 1)


def test_a_named_folder_needs_no_place_for_other_runs(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    named = create_run_folder(tmp_path / "file" / "runs", "e", "p", 0, tmp_path / "named")
    assert named.is_dir()
    with pytest.raises(InputError, match=r"cannot create the run folder .* name another with --run-dir"):
        create_run_folder(tmp_path / "file" / "runs", "e", "p", 0)
