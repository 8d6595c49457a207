from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bilevel.errors import InputError
from bilevel.runs.run_record import (
    check_inputs,
    has_begun,
    read_finished,
    working_on,
    write_finished,
    write_inputs,
)


def test_a_run_goes_on_with_what_it_began_with_alone(tmp_path: Path) -> None:
    assert not has_begun(tmp_path)
    write_inputs(tmp_path, {"pool": "ab", "model": "cd"})
    assert has_begun(tmp_path)
    check_inputs(tmp_path, {"pool": "ab", "model": "cd"}, {})
    with pytest.raises(InputError, match=r"the training rows changed since the run began; restore"):
        check_inputs(tmp_path, {"pool": "xx", "model": "cd"}, {"pool": "the training rows"})
    with pytest.raises(InputError, match="test changed"):
        check_inputs(tmp_path, {"pool": "ab", "model": "cd", "test": "ef"}, {})
    with pytest.raises(InputError, match="model changed"):
        check_inputs(tmp_path, {"pool": "ab"}, {})


def test_what_a_finished_method_left_comes_back(tmp_path: Path) -> None:
    assert read_finished(tmp_path, "bds") is None
    found = {"results": {"test_loss": 0.1 + 0.2, "fault_auc": None}, "metrics": 12}
    write_finished(tmp_path, "bds", found)
    assert read_finished(tmp_path, "bds") == found
    (tmp_path / "checkpoints" / "bds" / "finished.json").write_text("{")
    with pytest.raises(InputError, match=r"finished.json: broken .*; remove it"):
        read_finished(tmp_path, "bds")


HOLD = """
import sys
from pathlib import Path
from bilevel.runs.run_record import working_on
with working_on(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_works_on_a_run_and_its_death_sets_the_run_free(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"process {other.pid} is still running this"),
            working_on(tmp_path),
        ):
            pass
        other.kill()
        other.wait()
        with working_on(tmp_path):
            pass
