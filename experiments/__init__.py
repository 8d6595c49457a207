"""Experiments: parse, wire, run."""

import os
import sys


def _started_anywhere() -> None:
    """Lets modules of somebody's project, which Python puts first, stand behind those that are installed.

    A folder that one works in may well hold a `models.py` or `datasets.py` of its own. It stays on the path, for
    functions of the user's that flags name.
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if sys.path and sys.path[0] == os.getcwd() and os.path.realpath(sys.path[0]) != os.path.realpath(root):
        sys.path.append(sys.path.pop(0))


def _check_settings() -> None:
    """Ends in one line where a variable of the environment keeps JAX from being loaded at all."""
    try:
        import jax  # noqa: F401
    except Exception as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith(("JAX_", "XLA_")))) or "none"
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(f"error: JAX cannot be loaded ({said}); variables that it reads: {names}", file=sys.stderr)
        sys.exit(2)


# While `python -m` looks for the module, its packages are imported under this name; a library changes nothing.
if sys.argv[:1] == ["-m"]:
    _started_anywhere()
    _check_settings()
