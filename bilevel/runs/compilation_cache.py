"""Compiled programs kept on disk, so that a second run starts at once."""

import os
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
SECONDS_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
MIN_COMPILE_SECONDS = 0.1


def enable_compilation_cache(folder: str | Path | None = None) -> Path | None:
    """Keeps what JAX compiles from here on in a folder, and takes from it what was compiled before.

    Args:
        folder: where; by default `bilevel-lm/jax` in the user's cache folder. JAX's own environment variables
            win over this argument.

    Returns:
        The folder in use, or None where it cannot be written: a run does not fail for want of a cache.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    try:
        path = Path(named or folder or _user_cache() / "bilevel-lm" / "jax")
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no place for it, or a user without a home
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    if SECONDS_VARIABLE not in os.environ:
        # JAX's own limit of a second would keep none of the small programs of which a run has many.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    # JAX settles at the first compilation whether there is a cache; something may have been compiled already.
    compilation_cache.reset_cache()
    return path


def _user_cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path.home() / ".cache"
