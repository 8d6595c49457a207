"""The folder that a run leaves: its name, its summary and the environment it ran in."""

import contextlib
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically

PACKAGES = ("bilevel-lm", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers")


def create_run_folder(
    root: str | Path, experiment: str, preset: str, seed: int, name: str | Path | None = None
) -> Path:
    """Creates a fresh folder for a run and points `root/latest` to it.

    Args:
        root: where runs live, usually `runs`.
        experiment: the experiment's name.
        preset: the preset's name.
        seed: the run's seed.
        name: a folder to use instead of `root/EXPERIMENT-PRESET-sSEED[-n]`; it may exist if it is empty.

    Returns:
        The new folder.

    Raises:
        InputError: the named folder holds something already, or cannot be made.
    """
    root = Path(root)
    try:
        folder = (
            _named_folder(Path(name)) if name is not None else _next_folder(root, experiment, preset, seed)
        )
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot create the run folder ({error.strerror}); name another with --run-dir"
        ) from error
    # A run that writes elsewhere needs no place here.
    with contextlib.nullcontext() if name is None else contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        _point_latest(root / "latest", folder)
    return folder


def is_used(folder: Path) -> bool:
    """Whether something stands in a folder already."""
    return folder.is_dir() and any(folder.iterdir())


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json`; numbers that are not finite become null, since JSON has none."""
    write_atomically(folder / "summary.json", json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads `summary.json` back.

    Raises:
        InputError: no such file: the run did not finish, or this is no run folder.
    """
    path = folder / "summary.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; name the folder of a finished run") from error


def environment() -> dict[str, Any]:
    """Names what a run depends on: interpreter, packages, machine, devices and the command line."""
    devices = jax.devices()
    return {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "packages": {package: version for package in PACKAGES if (version := _version(package)) is not None},
        "system": f"{platform.system()} {platform.machine()}",
        "cores": _usable_cores(),
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
    }


def write_environment(folder: Path) -> None:
    """Writes `environment.json`; asks JAX for its devices, which starts them."""
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")


def _named_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or is_used(folder)):
        raise InputError(f"{folder}: the run folder is not empty; name another with --run-dir, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _next_folder(root: Path, experiment: str, preset: str, seed: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    base = f"{experiment}-{preset}-s{seed}"
    number = 1
    while True:
        folder = root / (base if number == 1 else f"{base}-{number}")
        try:
            # Creating is the test: two runs that start together get two folders.
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _point_latest(latest: Path, folder: Path) -> None:
    """Makes `latest` a link to the folder, or a file that names it where links are not allowed."""
    if latest.is_dir() and not latest.is_symlink():
        return
    target = os.path.relpath(folder, latest.parent)
    fresh = latest.with_name(f".latest.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target, target_is_directory=True)
        os.replace(fresh, latest)
    except OSError:
        latest.unlink(missing_ok=True)
        write_atomically(latest, f"{target}\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    # NumPy's and JAX's scalars have no JSON form of their own.
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int:
    # A container is often given fewer cores than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
