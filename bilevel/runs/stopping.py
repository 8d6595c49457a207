"""Being asked to stop: the first signal is a request, the second one an order."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While it is entered, SIGTERM and SIGINT (Ctrl-C) ask the run to stop instead of breaking it off.

    A second signal ends the process at once; what it was saving is then dropped, and what it saved before stays.
    Entered in a thread beside the main one, it changes nothing: signals are the main thread's.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """Which signal asked, None while none has."""
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + (self.signal or signal.SIGTERM)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # No clean-up: threads that write a checkpoint would have to be waited for.
            sys.stderr.flush()
            os._exit(128 + number)
        self.signal = number
        print("\nstopping after this step; once more to end at once", file=sys.stderr, flush=True)


class RunEnded(Exception):
    """A run that ended before its end, through no fault of its own.

    Args:
        message: one line: what happened, and how to go on.
        code: the process's exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
