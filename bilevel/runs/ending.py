"""How a run ends before its end: asked to stop, or without room on its disk; both can be continued."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from bilevel.runs.stopping import RunEnded, StopRequest
from bilevel.schedule import Stopped
from bilevel.storage.disk import DiskFullError, is_disk_full


@contextlib.contextmanager
def ending_well(proceed: str, folder: Path) -> Iterator[StopRequest]:
    """While entered, turns a request to stop and a full disk into one line that says how to go on.

    Args:
        proceed: how the run is continued, with `{folder}` for its folder.
        folder: the run folder.

    Yields:
        Whether the run was asked to stop.

    Raises:
        RunEnded: the run was stopped and saved, or the disk is full.
    """
    command = proceed.format(folder=shlex.quote(str(folder)))
    with StopRequest() as stop:
        try:
            yield stop
        except Stopped as stopped:
            raise RunEnded(
                f"stopped after step {stopped.state.step} and saved; continue with: {command}", stop.exit_code
            ) from None
        except Exception as error:
            if not is_disk_full(error):
                raise
            found = error if isinstance(error, DiskFullError) else DiskFullError(folder)
            raise RunEnded(f"{found}; make room there, then continue with: {command}", 1) from error
