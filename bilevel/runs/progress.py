"""How far a run is, how fast, and how long it will take: a bar on a terminal, sparse plain lines in a log."""

import sys
import time
from collections.abc import Callable, Mapping
from io import TextIOBase
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

BAR_SECONDS = 0.2
LINE_SECONDS = 30.0
LINE_SHARE = 0.1


class Progress:
    """Shows the progress of one loop on standard error.

    Args:
        total: how many steps the loop takes.
        title: what runs, shown first.
        enabled: whether to show anything; processes beside the first of several pass False.
        stream: where to show it, by default standard error. A terminal gets a bar; anything else a line
            every tenth of the way or half a minute, whichever comes first.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        total: int,
        title: str,
        enabled: bool = True,
        stream: TextIO | TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._title = title
        self._enabled = enabled
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._done = 0
        self._values: Mapping[str, Any] = {}
        self._started = self._shown_at = clock()
        self._first: tuple[int, float] | None = None
        self._shown = 0
        self._bar = self._make_bar() if enabled and self._stream.isatty() else None

    def advance(self, steps: int = 1, values: Mapping[str, Any] | None = None) -> None:
        """Counts steps.

        Args:
            steps: how many were taken since the last call.
            values: scalars to show, losses say. They are read only when something is shown, so that a loop
                that hands in arrays from a device does not wait for them at every step.
        """
        self._done += steps
        if self._first is None:
            self._first = (self._done, self._clock())
        if values is not None:
            self._values = values
        if self._enabled and self._is_due():
            self._show()

    def write(self, line: str) -> None:
        """Writes a line of text above the bar, or into the log."""
        if not self._enabled:
            return
        if self._bar is not None:
            tqdm.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Shows the last state and ends the line; closing twice does no harm."""
        if self._enabled and self._shown < self._done:
            self._show()
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_bar(self) -> "tqdm[Any]":
        shape = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{rate_fmt}, {remaining} left{postfix}]"
        return tqdm(
            total=self._total,
            desc=self._title,
            unit="step",
            file=self._stream,
            bar_format=shape,
            dynamic_ncols=True,
            mininterval=0.0,
            smoothing=0.1,
        )

    def _is_due(self) -> bool:
        waited = self._clock() - self._shown_at
        if self._bar is not None:
            return waited >= BAR_SECONDS
        return waited >= LINE_SECONDS or self._done - self._shown >= LINE_SHARE * self._total

    def _show(self) -> None:
        texts = {key: _text(value) for key, value in self._values.items()}
        if self._bar is not None:
            self._bar.set_postfix(texts, refresh=False)
            self._bar.update(self._done - self._shown)
        else:
            print(self._line(texts), file=self._stream, flush=True)
        self._shown, self._shown_at = self._done, self._clock()

    def _line(self, texts: Mapping[str, str]) -> str:
        share = 100 * self._done / self._total if self._total else 100
        # The first steps compile, which says nothing about those to come; without others they must do.
        skipped, since = self._first if self._first and self._first[0] < self._done else (0, self._started)
        seconds, steps = self._clock() - since, self._done - skipped
        parts = [f"{self._title}: {self._done}/{self._total} ({share:.0f}%)"]
        if seconds > 0 and steps:
            rate = steps / seconds
            parts.append(f"{rate:.3g} steps/s, {_duration((self._total - self._done) / rate)} left")
        parts += [f"{key} {text}" for key, text in texts.items()]
        return ", ".join(parts)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return "-" if value is None else value
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e6 else f"{number:.4g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
