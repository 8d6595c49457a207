"""A disk that is full: recognised whatever library meets it, named, and told apart from other errors."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEXTS = (
    "No space left",
    "ENOSPC",
    "StorageFull",
    "Disk quota exceeded",
    "EDQUOT",
    "File too large",
    "EFBIG",
)


class DiskFullError(OSError):
    """No room for a file; one line that names it, its disk, and what is left there."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(errno.ENOSPC, _described(Path(path)))

    def __str__(self) -> str:
        return str(self.strerror)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that there is no room; libraries keep the cause as text."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in _NUMBERS:
            return True
        if any(text in str(current) for text in _TEXTS):
            return True
        current = current.__cause__ or current.__context__
    return False


@contextlib.contextmanager
def naming_a_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever a library raises for a full disk while it writes `path` into `DiskFullError`."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(path) from error
        raise


def _described(path: Path) -> str:
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    text = f"{path}: no space left"
    with contextlib.suppress(OSError):
        text += f" ({_size(shutil.disk_usage(there).free)} free on the disk of {there})"
    return text


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
