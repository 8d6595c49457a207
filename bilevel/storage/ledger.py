"""A list of results that grows by one line a result, so that none is ever computed twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from bilevel.errors import InputError
from bilevel.storage.disk import naming_a_full_disk


def key(*parts: Any) -> str:
    """What a result is the result of, in 32 letters: the same in every process.

    >>> key("row's fingerprint", "model's fingerprint", {"temperature": 0.7, "top_p": 1})
    '12f82ee046463a5a0bff4d07684319d3'

    Args:
        *parts: whatever the result depends on, such as fingerprints of a row and a model, and settings; all that JSON
            knows. Dictionaries with the same items are the same.

    Raises:
        TypeError: a part that JSON does not know.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class Ledger:
    """Results by key in a file of JSON lines, each on disk before `append` returns.

    A process that is killed while it writes leaves at most half a line, which the next one cuts off. One process at a
    time may hold a ledger; the lock ends with it, however it ends.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "answers.jsonl"
    ...     with Ledger(path) as ledger:
    ...         ledger.append("a", {"text": "first"})
    ...     with Ledger(path) as ledger:
    ...         ledger.known(["a", "b"])
    {'a': {'text': 'first'}}

    Args:
        path: the file; it is made, with its folder, where it is not there.

    Raises:
        InputError: another process holds it, or a line in the middle is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._values = self._read()
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def known(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those of some keys that are here."""
        return {name: self._values[name] for name in keys if name in self._values}

    def append(self, key: str, value: Any) -> None:
        """Adds a result; once this has returned, it outlasts whatever happens to the process.

        Args:
            key: what the result is known by. A key that is here already takes the new value.
            value: what JSON knows.

        Raises:
            TypeError: a value that JSON does not know.
        """
        line = json.dumps({"key": key, "value": value}).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            with naming_a_full_disk(self.path):
                self._file.write(line)
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError:
            # Half a line must not stand before the next one.
            self._file.truncate(end)
            raise
        self._values[key] = json.loads(line)["value"]

    def close(self) -> None:
        """Lets other processes have the file."""
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            import fcntl

            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another process writes here; wait for its end, or stop it first"
            ) from None
        except (ImportError, OSError):
            pass  # where files cannot be locked there is no lock

    def _read(self) -> dict[str, Any]:
        self._file.seek(0)
        values: dict[str, Any] = {}
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                found = json.loads(line)
                values[str(found["key"])] = found["value"]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self.path}:{number}: damaged line ({' '.join(str(error).split())}); remove the line to have its "
                    "result computed again"
                ) from error
            whole += len(line)
        self._file.truncate(whole)
        return values
