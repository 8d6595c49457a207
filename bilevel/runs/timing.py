"""How long each part of a run took: `timings.json`, the one file beside clock times that no two runs share."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import jax

from bilevel.errors import InputError
from bilevel.storage.atomic import write_atomically

FILE = "timings.json"
OTHER = "other"
"""The part of everything that stands in no part."""
COMPILING = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")
"""JAX's own measurements that add up to compile time: lowering, and XLA (or reading its cache)."""


@dataclass(frozen=True)
class Part:
    """What one part of a run cost.

    Attributes:
        name: what was done.
        seconds: wall time spent in it, parts inside it not counted.
        compiling: how many of these seconds JAX compiled.
    """

    name: str
    seconds: float
    compiling: float = 0.0


class Timings:
    """Measures while it is entered; `part` then says what the time is spent on.

    Args:
        clock: seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._compiling: dict[str, float] = {}
        self._running = [OTHER]
        self._since = clock()
        self._earlier: list[list[Part]] | None = None
        self._token: Token[Timings | None] | None = None

    @property
    def parts(self) -> list[Part]:
        """What was measured so far, in the order in which parts began; their seconds add up to all the time."""
        self._charge()
        return [
            Part(name, seconds, self._compiling.get(name, 0.0)) for name, seconds in self._seconds.items()
        ]

    def write(self, folder: Path) -> None:
        """Writes `timings.json`; what an earlier, interrupted attempt at this run measured stays in it.

        Raises:
            InputError: the file of the earlier attempt is broken.
        """
        if self._earlier is None:
            self._earlier = read_timings(folder)
        attempts = [[asdict(part) for part in attempt] for attempt in (*self._earlier, self.parts)]
        write_atomically(folder / FILE, json.dumps(attempts, indent=1) + "\n")

    def __enter__(self) -> "Timings":
        self._token = _current.set(self)
        jax.monitoring.register_event_duration_secs_listener(self._count_compiling)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._count_compiling)
        assert self._token is not None  # set on entering
        _current.reset(self._token)

    @contextmanager
    def _spend(self, name: str) -> Iterator[None]:
        self._charge()
        self._seconds.setdefault(name, 0.0)
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now, name = self._clock(), self._running[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now

    def _count_compiling(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in COMPILING:
            name = self._running[-1]
            self._compiling[name] = self._compiling.get(name, 0.0) + duration_secs


@contextmanager
def part(name: str) -> Iterator[None]:
    """Says what is done until the block ends; where nothing measures, it does nothing.

    A part inside another is counted once, as the inner one.

    Args:
        name: as a reader will see it. Blocks of one name add up.
    """
    timings = _current.get()
    if timings is None:
        yield
        return
    with timings._spend(name):
        yield


def write_timings(folder: Path) -> None:
    """Writes what the entered `Timings` measured so far to `timings.json`; does nothing where none is entered."""
    timings = _current.get()
    if timings is not None:
        timings.write(folder)


def read_timings(folder: Path) -> list[list[Part]]:
    """Reads `timings.json`.

    Args:
        folder: a run folder.

    Returns:
        The parts of each attempt at the run, the earliest first; nothing if there is no file.

    Raises:
        InputError: the file is broken.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        attempts = json.loads(path.read_text(encoding="utf-8"))
        return [[Part(**part) for part in attempt] for attempt in attempts]
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: no timings ({error}); remove the file") from error


_current: ContextVar[Timings | None] = ContextVar("timings", default=None)
