import io
import re

import pytest

from bilevel.runs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """A scalar that counts how often somebody waits for it."""

    def __init__(self) -> None:
        self.reads = 0

    def __float__(self) -> float:
        self.reads += 1
        return 1.25


def run(stream: io.StringIO, steps: int, seconds_a_step: float, value: object = 0.5) -> None:
    clock = Clock()
    with Progress(steps, "bds", stream=stream, clock=clock) as progress:
        for _ in range(steps):
            clock.now += seconds_a_step
            progress.advance(values={"lower": value})


def test_log_gets_a_line_every_tenth_of_a_fast_loop() -> None:
    stream = io.StringIO()
    run(stream, 1000, 0.01)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[1] == "bds: 200/1000 (20%), 100 steps/s, 8 s left, lower 0.5"
    assert lines[-1].startswith("bds: 1000/1000 (100%)")
    assert "\r" not in stream.getvalue()


def test_log_gets_a_line_every_half_minute_of_a_slow_loop() -> None:
    stream = io.StringIO()
    run(stream, 100, 15.0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 50
    assert lines[0] == "bds: 2/100 (2%), 0.0667 steps/s, 24 min 30 s left, lower 0.5"


def test_values_are_read_only_when_they_are_shown() -> None:
    value = Counted()
    run(io.StringIO(), 1000, 0.01, value)
    assert value.reads == 10


def test_terminal_gets_one_bar_with_rate_time_left_and_losses() -> None:
    stream = Terminal()
    run(stream, 20, 0.5)
    shown = stream.getvalue()
    assert "20/20" in shown
    assert "left" in shown
    assert "lower=0.5" in shown
    assert "100%" in shown
    assert shown.count("\n") == 1


def test_terminal_is_not_redrawn_at_every_step_of_a_fast_loop() -> None:
    value = Counted()
    run(Terminal(), 1000, 0.01, value)
    assert 0 < value.reads <= 50


def test_disabled_progress_is_silent() -> None:
    stream = io.StringIO()
    with Progress(2, "bds", enabled=False, stream=stream) as progress:
        progress.advance(2)
        progress.write("a line")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_lines_stand_whole_among_the_progress(stream: io.StringIO) -> None:
    with Progress(2, "bds", stream=stream) as progress:
        progress.advance()
        progress.write("12 rows were rejected")
        progress.advance()
    assert "12 rows were rejected" in re.split(r"[\r\n]+", stream.getvalue())


def test_compiling_in_the_first_step_does_not_spoil_the_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(100, "bds", stream=stream, clock=clock) as progress:
        for step in range(20):
            clock.now += 0.1 if step else 20.0
            progress.advance()
    assert "20/100 (20%), 10 steps/s, 8 s left" in stream.getvalue()


def test_loop_that_ends_early_shows_where() -> None:
    stream = io.StringIO()
    with Progress(1000, "bds", stream=stream) as progress:
        progress.advance(7)
    assert stream.getvalue().startswith("bds: 7/1000 (1%)")


def test_loop_without_steps_shows_nothing() -> None:
    stream = io.StringIO()
    with Progress(0, "bds", stream=stream):
        pass
    assert stream.getvalue() == ""
