from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bilevel.storage.disk import DiskFullError, is_disk_full, naming_a_full_disk


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (
            ValueError(
                "RESOURCE_EXHAUSTED: Error writing file [OS error 28: ENOSPC No space left on device]"
            ),
            True,
        ),
        (
            ValueError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "x" })'),
            True,
        ),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 2 bytes"), False),
        (caused(RuntimeError("a thread failed"), OSError(errno.ENOSPC, "full")), True),
        (caused(RuntimeError("a thread failed"), OSError(errno.EIO, "broken")), False),
    ],
    ids=str,
)
def test_a_full_disk_is_known_whoever_meets_it(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full


def test_the_error_names_the_file_and_what_is_left_on_its_disk(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there"
    with (
        pytest.raises(
            DiskFullError, match=rf"^{path}: no space left \(\d.* free on the disk of {tmp_path}\)$"
        ) as first,
        naming_a_full_disk(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFullError) as second, naming_a_full_disk(tmp_path):
        raise first.value
    assert second.value is first.value


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(KeyError), naming_a_full_disk(tmp_path):
        raise KeyError("name")
