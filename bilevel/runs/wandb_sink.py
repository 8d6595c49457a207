"""Weights & Biases as one more place for what a run measures; the package `wandb` is optional.

One run folder is one W&B run, also over interruptions: `wandb.json` in the folder keeps its id. W&B's own files lie in
`wandb/` of the run folder. WANDB_MODE=offline needs neither network nor account; `wandb sync` sends such runs later.
"""

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically

FILE = "wandb.json"
FOLDER = "wandb"
_ALONE = ("offline", "dryrun", "disabled")
_ID_BYTES = 8
_SECONDS_TO_ANSWER = 60.0


def check_wandb() -> None:
    """Checks that W&B can be used, before time is spent.

    Without WANDB_MODE=offline, and where there is no account on this machine, W&B itself asks on a terminal.

    Raises:
        InputError: the package is not installed, or there is no account.
    """
    if importlib.util.find_spec("wandb") is None:
        raise InputError(
            "--wandb needs the package wandb, which is not installed; install it with: pip install wandb"
        )
    if os.environ.get("WANDB_MODE") in _ALONE:
        return
    import wandb

    try:
        wandb.login()
    except wandb.Error as error:
        raise InputError(
            f"--wandb: {_one_line(error)} Or set WANDB_MODE=offline, which needs no account"
        ) from error


class WandbSink:
    """One W&B run, told of what a run measures.

    Args:
        folder: the run folder. Where an earlier attempt at this run left `wandb.json`, its W&B run goes on.
        project: the project's name.
        config: the run's configuration, as plain values.

    Raises:
        InputError: W&B refuses, or cannot be reached.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._told: set[str] = set()
        identity = _identity(folder, project)
        own = folder / FOLDER
        own.mkdir(exist_ok=True)
        # Its logs would otherwise go to the user's home; an own choice stands.
        os.environ.setdefault("WANDB_CACHE_DIR", str((own / "cache").resolve()))
        try:
            self._run = wandb.init(
                project=project,
                id=identity,
                resume="allow",
                dir=str(folder),
                name=folder.resolve().name,
                config=dict(config),
                settings=wandb.Settings(
                    silent=True, console="off", disable_code=True, init_timeout=_SECONDS_TO_ANSWER
                ),
            )
        except wandb.Error as error:
            raise InputError(
                f"--wandb {project}: {_one_line(error)}; set WANDB_MODE=offline to send the run later with wandb sync"
            ) from error

    def write(self, number: int, method: str, step: int, values: Mapping[str, Any]) -> None:
        """Sends one line of the metrics.

        Args:
            number: of the line in `metrics.jsonl`, from 0. W&B's own count: a line that comes again after an
                interruption is the same line there, too.
            method: whose numbers these are; they are named `METHOD/NUMBER` and drawn over `METHOD/step`.
            step: after how many steps.
            values: plain values.
        """
        if method not in self._told:
            self._told.add(method)
            self._run.define_metric(f"{method}/step")
            self._run.define_metric(f"{method}/*", step_metric=f"{method}/step")
        numbers = {
            f"{method}/{key}": value for key, value in values.items() if isinstance(value, int | float)
        }
        self._run.log({f"{method}/step": step, **numbers}, step=number)

    def summarise(self, results: Mapping[str, Mapping[str, float | None]]) -> None:
        """Sends the results of all methods, named `results/METHOD/NUMBER`.

        Args:
            results: numbers of each method.
        """
        self._run.summary.update(
            {
                f"results/{method}/{key}": value
                for method, line in results.items()
                for key, value in line.items()
                if value is not None
            }
        )

    def close(self, failed: bool) -> None:
        """Ends the W&B run, as finished or as failed; a run that goes on later takes it up again."""
        self._run.finish(exit_code=int(failed))


def _identity(folder: Path, project: str) -> str:
    """The id of the folder's W&B run, made where there is none or where it belongs to another project."""
    path = folder / FILE
    if path.exists():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["project"] == project:
                return str(kept["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path}: names no W&B run ({error!r}); remove the file") from error
    identity = secrets.token_hex(_ID_BYTES)
    write_atomically(path, json.dumps({"project": project, "id": identity}) + "\n")
    return identity


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."
