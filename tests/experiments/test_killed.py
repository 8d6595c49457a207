"""Runs in processes of their own that are killed, terminated, and left without room: nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.runs import SMALL, same_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "experiments.bds_alpaca"]
LONGER = [*SMALL, "--steps", "60"]
OFTEN = ["--checkpoints.every-steps", "4"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = run([*LONGER, "--run-dir", "run"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def kill_at_a_random_moment(child: subprocess.Popen, chance: random.Random) -> bool:
    """Kills a run some lines of its progress and some milliseconds later, or as it loads; False if it had ended."""
    assert child.stderr is not None
    count = chance.randint(0, 7)
    for _ in range(count):
        if not child.stderr.readline():
            break
    time.sleep(chance.uniform(0, 0.3 if count else 5.0))
    ended = child.poll() is not None
    child.kill()
    child.communicate()
    return not ended


def test_killed_at_ten_random_moments_a_run_ends_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path
) -> None:
    chance = random.Random(0)
    arguments = [*LONGER, *OFTEN, "--run-dir", "run"]
    kills = 0
    while kills < 10:
        killed = kill_at_a_random_moment(start(arguments, tmp_path), chance)
        assert killed, f"the run ended after {kills} kills"
        kills += 1
        if (tmp_path / "run" / "config.yaml").exists():
            arguments = ["--resume", "run"]
    done = run(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continues after step" in done.stderr
    same_run(tmp_path / "run", whole)


def test_a_second_interrupt_ends_the_process_at_once(whole: Path, tmp_path: Path) -> None:
    child = start(
        [*LONGER, "--steps", "100000", "--checkpoints.every-steps", "50", "--run-dir", "run"], tmp_path
    )
    assert child.stderr is not None
    child.stderr.readline()
    while not list((tmp_path / "run" / "checkpoints").glob("bds/*/seal.json")):
        time.sleep(0.05)
    # Two signals at once would be one.
    child.send_signal(signal.SIGINT)
    while "once more to end at once" not in (line := child.stderr.readline()):
        assert line, "the run ended before it was interrupted a second time"
    child.send_signal(signal.SIGINT)
    child.communicate()
    assert child.returncode == 130
    assert list((tmp_path / "run" / "checkpoints").glob("bds/*/seal.json"))


def mounted(folder: Path, size: str) -> bool:
    """Puts a small disk in memory at a folder; False where that is not allowed."""
    if shutil.which("mount") is None:
        return False
    return not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode


def test_on_a_full_disk_a_run_ends_with_a_word_and_goes_on_with_more_room(
    whole: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if not mounted(disk, "900k"):
        pytest.skip("needs the right to mount a disk in memory")
    try:
        full = run([*LONGER, *OFTEN, "--run-dir", "disk/run"], tmp_path)
        assert full.returncode == 1, full.stderr
        said = full.stderr.strip().splitlines()[-1]
        assert said.startswith("error: disk/run/")
        assert "no space left (" in said
        assert said.endswith("continue with: python -m experiments.bds_alpaca --resume disk/run")
        assert "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        done = run(["--resume", "disk/run"], tmp_path)
        assert done.returncode == 0, done.stderr
        # Which method was at work when the disk was full depends on how fast the run is.
        assert "continues after step" in done.stderr or "has no checkpoint and begins anew" in done.stderr
        same_run(disk / "run", whole)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
