"""Results that are written file by file, so that one that fails costs that one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bilevel.storage.disk import is_disk_full


class NotWrittenError(Exception):
    """Files that could not be written, and why; all others were.

    Args:
        lines: one for each of them.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


def write_each(*pieces: tuple[Path, Callable[[], object]]) -> None:
    """Writes each file, whatever became of those before it.

    Args:
        *pieces: a file or folder, and what writes it.

    Raises:
        NotWrittenError: at the end, for those that failed.
        Exception: at once, where there is no room for more.
    """
    failed = []
    for path, write in pieces:
        try:
            write()
        except NotWrittenError as error:
            failed += error.lines
        except Exception as error:
            if is_disk_full(error):
                raise
            failed.append(f"{path} ({' '.join(f'{type(error).__name__}: {error}'.split())[:200]})")
    if failed:
        raise NotWrittenError(failed)
