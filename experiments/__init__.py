"""Experiments: parse, wire, run."""

import os
import sys

from bilevel.started import named_module, stand_behind_installed


def _check_settings() -> None:
    """Ends in one line where a variable of the environment keeps JAX from being loaded at all."""
    try:
        import jax  # noqa: F401
    except Exception as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith(("JAX_", "XLA_")))) or "none"
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"error: JAX cannot be loaded ({said}); variables that it reads: {names}", file=sys.stderr)
        sys.exit(2)


if named_module(sys.orig_argv).startswith("experiments."):
    stand_behind_installed()
    _check_settings()
