import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from bilevel.runs.compilation_cache import enable_compilation_cache

events = []
jax.monitoring.register_event_listener(lambda event, **details: events.append(event))
jax.jit(lambda x: x + 1)(1.0)
print(enable_compilation_cache(*sys.argv[1:]))

def program(x):
    for step in range(40):
        x = jnp.tanh(x @ x.T @ x + step)
    return x.sum()

jax.jit(jax.grad(program))(jnp.ones((16, 16))).block_until_ready()
print(sum(event.endswith("cache_hits") for event in events))
"""


def run(*arguments: str, **variables: str) -> tuple[str, int]:
    """Runs the program in a fresh process; returns the folder it used and how often the cache was hit."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *arguments],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder, hits = done.stdout.split()
    return folder, int(hits)


def test_second_process_takes_the_program_from_the_folder(tmp_path: Path) -> None:
    folder = str(tmp_path / "made" / "here")
    assert run(folder) == (folder, 0)
    assert any(Path(folder).iterdir())
    again, hits = run(folder)
    assert again == folder
    assert hits > 0


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ((), {"XDG_CACHE_HOME": "{tmp}/cache"}, "{tmp}/cache/bilevel-lm/jax"),
        (("{tmp}/argument",), {"JAX_COMPILATION_CACHE_DIR": "{tmp}/variable"}, "{tmp}/variable"),
        (("/dev/null/cache",), {}, "None"),
    ],
)
def test_folder_is_the_variable_then_the_argument_then_the_users(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], expected: str
) -> None:
    filled = {key: value.format(tmp=tmp_path) for key, value in variables.items()}
    folder, _ = run(*(argument.format(tmp=tmp_path) for argument in arguments), **filled)
    assert folder == expected.format(tmp=tmp_path)
