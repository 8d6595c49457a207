"""What a run measures while it runs: `metrics.jsonl`, one JSON object a line, and TensorBoard events."""

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from bilevel.errors import InputError
from bilevel.runs.events import EventFile
from bilevel.storage.disk import naming_a_full_disk

FILE = "metrics.jsonl"
EVENTS = "events"
NON_FINITE = "non_finite"
"""Key under which a line keeps which of its numbers were nan, inf or -inf: JSON has none of them."""


@runtime_checkable
class Sink(Protocol):
    """One more place for what is measured."""

    def write(self, number: int, method: str, step: int, values: Mapping[str, Any]) -> None:
        """Takes one line, whose number counts from 0; after a cut, numbers come again."""

    def close(self, failed: bool) -> None:
        """Ends, after the last line or because the run failed."""


class MetricsWriter:
    """Appends lines to `metrics.jsonl` and the same numbers to `events/METHOD`.

    Args:
        folder: the run folder. Lines that stand in it stay, but for a last one that a killed run left
            unfinished.
        flush_seconds: lines reach the file after this time at the latest, and when the writer closes.
        events: whether to write TensorBoard events too.
        also: further places; they are closed with the writer.
    """

    def __init__(
        self, folder: Path, flush_seconds: float = 5.0, events: bool = True, also: Sequence[Sink] = ()
    ) -> None:
        self._folder = folder
        self._also = also
        self._flush_seconds = flush_seconds
        self._events = events
        self._boards: dict[str, EventFile] = {}
        self._purged_from: dict[str, int] = {}
        _drop_unfinished_line(folder / FILE)
        self._file = (folder / FILE).open("a", encoding="utf-8", newline="\n")
        self._lines = _count_lines(folder / FILE)
        self._flushed_at = time.monotonic()

    def write(self, method: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line: `{"method": ..., "step": ..., **values}`.

        Args:
            method: whose numbers these are.
            step: after how many steps.
            values: scalars (Python's, NumPy's or JAX's), text, truth values or None. Numbers that are not
                finite become null, and `non_finite` in the line says what they were.

        Raises:
            TypeError: a value is none of these.
        """
        plain = {key: _plain(key, value) for key, value in values.items()}
        lost = {key: str(value) for key, value in plain.items() if not _is_finite(value)}
        line = {"method": method, "step": int(step)} | plain | dict.fromkeys(lost)
        if lost:
            line[NON_FINITE] = lost
        with naming_a_full_disk(self._folder / FILE):
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        if self._events:
            with naming_a_full_disk(self._folder / EVENTS / method):
                self._write_events(method, step, plain)
        for sink in self._also:
            sink.write(self._lines, method, int(step), plain)
        self._lines += 1
        if time.monotonic() - self._flushed_at >= self._flush_seconds:
            self.flush()

    def cut(self, position: int, method: str, step: int) -> None:
        """Goes back to an earlier moment, so that a continued run writes on as if nothing had come after it.

        Args:
            position: `position` at that moment.
            method: which method was running.
            step: its steps at that moment; TensorBoard is told to forget its events after them.
        """
        self._file.flush()
        self._file.truncate(min(position, self._file.seek(0, os.SEEK_END)))
        self._file.seek(0, os.SEEK_END)
        self._lines = _count_lines(self._folder / FILE)
        self._purged_from[method] = step + 1

    def position(self) -> int:
        """Brings every line so far to the disk and returns the length of the file in bytes."""
        self.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def flush(self) -> None:
        """Brings every line so far to its file."""
        with naming_a_full_disk(self._folder / FILE):
            self._file.flush()
        for method, board in self._boards.items():
            with naming_a_full_disk(self._folder / EVENTS / method):
                board.flush()
        self._flushed_at = time.monotonic()

    def close(self, failed: bool = False) -> None:
        """Flushes and closes the files and ends the sinks; closing twice does no harm.

        Args:
            failed: whether the run ends before its end.
        """
        boards, self._boards = self._boards, {}
        sinks, self._also = self._also, ()
        with contextlib.ExitStack() as stack:
            for sink in sinks:
                stack.callback(sink.close, failed)
            for method, board in boards.items():
                stack.enter_context(naming_a_full_disk(self._folder / EVENTS / method))
                stack.callback(board.close)
            with naming_a_full_disk(self._folder / FILE):
                self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def _write_events(self, method: str, step: int, values: Mapping[str, Any]) -> None:
        if method not in self._boards:
            self._boards[method] = EventFile(self._folder / EVENTS / method, self._purged_from.get(method))
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._boards[method].write(int(step), numbers)


def read_metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads `metrics.jsonl` back.

    Args:
        folder: a run folder, also one whose run was killed or still goes on.

    Returns:
        The lines of each method in the order they were written; nothing if there is no file.

    Raises:
        InputError: a line before the last is broken.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    lines: dict[str, list[dict[str, Any]]] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if not text.endswith("\n"):
                break
            raise InputError(f"{path}:{number}: broken JSON ({error.msg}); remove the line") from error
        lines.setdefault(line["method"], []).append(line)
    return lines


def _plain(key: str, value: Any) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool | int | float | str):
        # NumPy's float64 is a float, and prints as np.float64(...) unless it is made a plain one.
        return float(value) if isinstance(value, float) else value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        item = value.item()
        if isinstance(item, bool | int | float | str):
            return item
    raise TypeError(
        f"metric {key!r} is no scalar but {type(value).__name__} of shape {getattr(value, 'shape', None)}"
    )


def _is_finite(value: bool | int | float | str | None) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def _drop_unfinished_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
