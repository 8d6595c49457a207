import os
import subprocess
import sys
from pathlib import Path

from bilevel.runs.compilation_cache import enable_compilation_cache

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from bilevel.runs.compilation_cache import enable_compilation_cache

events = []
jax.monitoring.register_event_listener(lambda event, **details: events.append(event))
jax.jit(lambda x: x + 1)(1.0)
print(enable_compilation_cache(*sys.argv[1:]))

def program(x):
    for step in range(12):
        x = jnp.tanh(x @ x.T @ x + step)
    return x.sum()

jax.jit(jax.grad(program))(jnp.ones((16, 16))).block_until_ready()
print(sum(event.endswith("cache_hits") for event in events))
"""

FOLDERS = """
import os, sys
import jax
from bilevel.runs.compilation_cache import enable_compilation_cache

folder = sys.argv[1]
os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
print(enable_compilation_cache(), jax.config.jax_compilation_cache_dir)
os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/variable"
print(enable_compilation_cache(f"{folder}/argument"), jax.config.jax_compilation_cache_dir)
del os.environ["JAX_COMPILATION_CACHE_DIR"]
print(enable_compilation_cache(f"{folder}/argument"), jax.config.jax_compilation_cache_dir)
print(enable_compilation_cache("/dev/null/cache"))
print(jax.jit(lambda x: x + 1)(1.0))
"""


def run(program: str, argument: Path) -> list[str]:
    """What a program prints in a fresh process, where no cache is set and XLA optimizes."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XDG_", "XLA_"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(argument)],
        env=inherited | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_second_process_takes_the_program_from_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    assert run(PROGRAM, folder) == [str(folder), "0"]
    assert any(folder.iterdir())
    again, hits = run(PROGRAM, folder)
    assert again == str(folder)
    assert int(hits) > 0


def test_folder_is_the_variable_then_the_argument_then_the_users(tmp_path: Path) -> None:
    users, variable, argument = (
        str(tmp_path / name) for name in ("cache/bilevel-lm/jax", "variable", "argument")
    )
    assert run(FOLDERS, tmp_path) == [users] * 2 + [variable] * 2 + [argument] * 2 + ["None", "2.0"]


def test_a_user_without_a_home_has_no_cache(monkeypatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert enable_compilation_cache() is None
