"""A command: parse flags, run, end with an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TypeVar

import jax

from bilevel.errors import InputError
from bilevel.runs.configuration import NothingToRun, parse, run_options
from bilevel.runs.running import is_finished
from bilevel.runs.stopping import RunEnded
from bilevel.runs.timing import Timings
from bilevel.runs.wandb_sink import check_wandb
from bilevel.schedule import NonFiniteError
from bilevel.storage.disk import is_disk_full

Config = TypeVar("Config")


class _Terminated(BaseException):
    """SIGTERM, before there is anything to save."""


def run_command(
    experiment: str,
    presets: Mapping[str, Config],
    run: Callable[[Config], None],
    arguments: Sequence[str] | None = None,
    refusals: tuple[type[Exception], ...] = (),
) -> int:
    """Runs an experiment; the result is its exit code.

    0 for a run that reached its end, 1 for one that failed, 2 for bad input, 130 and 143 for one that was stopped by
    SIGINT (Ctrl-C) and SIGTERM: it was saved, and the last line says how to continue it.

    Args:
        experiment: its module's name.
        presets: configurations by name, the first one the default; flags change the chosen one's fields. With a field
            `run` of `RunOptions` the command takes `--config` and `--resume`.
        run: the experiment.
        arguments: command line, by default this process's.
        refusals: errors besides InputError by which what `run` calls refuses bad input in one line.
    """
    bad_input: tuple[type[Exception], ...] = (InputError, *refusals)
    try:
        config = parse(experiment, presets, list(sys.argv[1:] if arguments is None else arguments))
        options = run_options(config)
        if options is not None and options.resume is not None and is_finished(options.resume):
            print(f"{options.resume}: this run is finished; see {options.resume / 'report.html'}")
            return 0
        if options is not None and options.wandb is not None:
            check_wandb()
        with _sigterm_raises(), Timings():
            run(config)
    except NothingToRun as nothing:
        return nothing.code
    except bad_input as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if not is_disk_full(error):
            raise
        print(f"error: {error}; make room there", file=sys.stderr)
        return 1
    except (RuntimeError, AssertionError):  # JAX asserts that there is a device
        missing = _missing_devices()
        if missing is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        return 2
    except RunEnded as ended:
        print(f"{'error: ' if ended.code == 1 else ''}{ended}", file=sys.stderr)
        return ended.code
    except KeyboardInterrupt:
        print("interrupted before training began; nothing is lost", file=sys.stderr)
        return 130
    except _Terminated:
        print("terminated before training began; nothing is lost", file=sys.stderr)
        return 143
    return 0


def _missing_devices() -> str | None:
    """Why JAX finds no device to run on, None where it does."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        said = " ".join(str(error).split())[:200] or "JAX found none"
        remedy = "unset it, or set it to cpu" if asked else "set it to cpu"
        return f"no device to run on ({said}); JAX_PLATFORMS is {asked!r}: {remedy}"
    return None


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets SIGTERM end the loading of rows and models as Ctrl-C does."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
