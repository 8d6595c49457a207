"""A derivative whose process is killed outright goes on, in another process, to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp, numpy as np, optax
from bilevel.core.lower_steps import Iterate
from bilevel.core.unroll import Above, Plan, Reached, RunPrograms, TrainingRun, differentiate_run
from bilevel.storage.run_shelf import DiskJournal, DiskShelf
from bilevel.weighting import row_logits
from tests.zoo import network, row_losses, row_problem, rows
import jax

folder, left = sys.argv[1], int(sys.argv[2])
problem, optimizer = row_problem(10, weighting=row_logits("sigmoid")), optax.adamw(1e-2)
params = network(jax.random.key(0))
given = [rows(seed, 6, 10) for seed in range(6)]
stacked = {name: np.stack([each[name][None] for each in given]) for name in given[0]}

def batches(begin, end):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {name: value[begin:end] for name, value in stacked.items()}

def above(inner):
    loss = lambda inner: row_losses(inner, rows(50, 4)).weighted().value
    return Above(jnp.zeros(10), jax.grad(loss)(inner))

found = differentiate_run(
    RunPrograms(problem, optimizer), jnp.zeros(10),
    TrainingRun(Reached(Iterate(params, optimizer.init(params)), ()), 6, batches),
    above, Plan(6, 1, starts=2, place="disk"),
    shelf=DiskShelf(Path(folder, "states")), journal=DiskJournal(Path(folder, "progress")),
)
np.savez(folder + ".npz", gradient=found.gradient, cotangents=found.cotangents, runs=found.segment_runs)
"""


def derivative(folder: Path, left: int) -> int:
    """Runs the program, which kills itself when it asks for a batch for the `left`-th time, and gives its status."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(left)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.slow
def test_it_is_killed_in_the_sweep_in_the_replay_and_while_pulling_back(tmp_path):
    assert derivative(tmp_path / "whole", 0) == 0
    whole = np.load(tmp_path / "whole.npz")
    folder = tmp_path / "killed"
    # The first batch is asked for to look at types, the next six in the sweep, then pulled back and replayed in turns.
    for left in (5, 5, 4):
        assert derivative(folder, left) == -signal.SIGKILL
    assert derivative(folder, 0) == 0
    found = np.load(tmp_path / "killed.npz")
    np.testing.assert_array_equal(found["gradient"], whole["gradient"])
    np.testing.assert_array_equal(found["cotangents"], whole["cotangents"])
    assert found["runs"] < whole["runs"]
