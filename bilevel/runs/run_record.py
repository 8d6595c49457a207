"""How far a run is: what it began with, which of its methods are finished, and whether somebody works on it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically

FOLDER = "checkpoints"
_INPUTS = "inputs.json"
_FINISHED = "finished.json"


def write_inputs(folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Writes down the fingerprints of what a run starts from."""
    (folder / FOLDER).mkdir(exist_ok=True)
    write_atomically(folder / FOLDER / _INPUTS, json.dumps(dict(fingerprints), indent=1) + "\n")


def has_begun(folder: Path) -> bool:
    """Whether a run got as far as writing down what it starts from."""
    return (folder / FOLDER / _INPUTS).exists()


def check_inputs(folder: Path, fingerprints: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Checks that a run is continued from what it began with.

    Args:
        folder: the run folder, of a run that has begun.
        fingerprints: of what it would be continued with.
        names: what a reader knows each of them as.

    Raises:
        InputError: something is not what the run began with.
    """
    before = _read(folder / FOLDER / _INPUTS)
    for name in [*fingerprints, *(name for name in before if name not in fingerprints)]:
        if before.get(name) != fingerprints.get(name):
            raise InputError(
                f"{folder}: {names.get(name, name)} changed since the run began; "
                "restore what it began with, or begin a new run"
            )


def write_finished(folder: Path, method: str, found: Mapping[str, Any]) -> None:
    """Writes down that a method is finished, with what the rest of the run needs of it; plain values."""
    (folder / FOLDER / method).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FOLDER / method / _FINISHED, json.dumps(dict(found), indent=1) + "\n")


def read_finished(folder: Path, method: str) -> dict[str, Any] | None:
    """What `write_finished` wrote, None for a method that is not finished."""
    path = folder / FOLDER / method / _FINISHED
    return _read(path) if path.exists() else None


@contextlib.contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Keeps other processes from working on a run at the same time.

    The lock ends with the process that holds it, however that ends. Where files cannot be locked there is none.

    Raises:
        InputError: another process works on the run.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    with (folder / FOLDER / ".lock").open("a+") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: process {file.read().strip() or 'unknown'} is still running this; wait for its end, "
                "or stop it first"
            ) from None
        except (ImportError, OSError):
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        return found
    except ValueError as error:
        raise InputError(f"{path}: broken ({error}); remove it to run this part again") from error
