"""What a command says of a machine that it cannot run on, and where it may be started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bilevel.runs import command
from bilevel.started import Ours, is_asked_for

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Flags:
    """Flags of a command."""

    seed: int = 0


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'xpu'"), AssertionError()])
def test_no_device_is_one_line_with_a_remedy(error: Exception, monkeypatch, capsys) -> None:
    def devices() -> None:
        raise error

    monkeypatch.setattr(command.jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "xpu")
    assert command.run_command("mine", {"default": Flags()}, lambda _: devices(), []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no device to run on (")
    assert said.endswith("JAX_PLATFORMS is 'xpu': unset it, or set it to cpu\n")
    assert said.count("\n") == 1


def test_other_errors_of_that_kind_are_none_of_the_machines() -> None:
    def fails(flags: Flags) -> None:
        raise RuntimeError("of a program's own")

    with pytest.raises(RuntimeError, match="of a program's own"):
        command.run_command("mine", {"default": Flags()}, fails, [])


@pytest.mark.parametrize(
    ("arguments", "there", "asked"),
    [
        (["python", "-m", "experiments.compare", "--help"], "", True),
        (["python", "-W", "error", "-m", "experiments.compare"], "", True),
        (["python", "-m", "experiments.compare"], "experiments/compare.py", False),
        (["python", "-m", "experiments.theirs"], "", False),
        (["python", "-m", "pytest", "-m", "experiments.compare"], "", False),
        (["python", "train.py", "experiments.compare"], "", False),
    ],
)
def test_ours_are_meant_where_nobody_elses_are_there(arguments, there, asked, tmp_path: Path) -> None:
    if there:
        (tmp_path / there).parent.mkdir()
        (tmp_path / there).touch()
    assert is_asked_for(arguments, str(tmp_path)) == asked


def test_the_package_beside_the_library_is_found() -> None:
    spec = Ours.find_spec("experiments")
    assert spec is not None
    assert Path(str(spec.origin)) == ROOT / "experiments" / "__init__.py"
    assert Ours.find_spec("models") is None


PROGRAM = """
import os, sys
os.chdir(sys.argv[1])
sys.path[:] = [os.getcwd(), *(path for path in sys.path if path), sys.argv[2]]
sys.orig_argv[:] = ["python", "-m", "experiments.compare"]
import experiments
print(sys.path[0] != os.getcwd(), sys.path[-1] == os.getcwd())
import models, datasets
print(models.__file__ == f"{sys.path[-2]}/models/__init__.py", "site-packages" in datasets.__file__)
"""


def test_modules_of_somebodys_project_stand_behind_those_that_are_installed(tmp_path: Path) -> None:
    for name in ("models.py", "datasets.py"):
        (tmp_path / name).write_text("raise SystemExit('not mine')")
    command_line = [sys.executable, "-c", PROGRAM, str(tmp_path), str(ROOT)]
    found = subprocess.run(command_line, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True"] * 4
