"""What a test file costs: `pytest --measure` ends with a table of seconds, compilations and memory by file."""

from __future__ import annotations

import resource
import time
from collections import Counter, defaultdict
from pathlib import Path

import jax
import pytest

COMPILING = "/jax/core/compile/backend_compile_duration"
TRACING = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
COLUMNS = ("seconds", "set-up", "compiling", "tracing", "programs", "grown", "peak")
MIB = 1024

MOST_PROGRAMS = 350
"""How many programs a file of tests may compile; docs/contributing.md says how to stay inside."""
MORE_PROGRAMS = {
    # Tables of cases, each of which is a program of its own.
    "test_docs.py": 700,
    "float64/test_compare.py": 680,
    "float64/test_estimators.py": 600,
    "float64/test_hypergradients.py": 580,
    "float64/test_unroll.py": 550,
    "float64/test_implicit_layer.py": 520,
    "float64/test_networks.py": 420,
    "float64/test_curvature.py": 410,
    # Several runs of different experiments.
    "runs/test_running.py": 400,
    "experiments/test_dwm_pretrain.py": 620,
    "experiments/test_dwm_transfer.py": 580,
}
"""Files that may compile more; lower these as the files get cheaper."""


class Compilations:
    """Counts the programs that this process compiles; those that a cache on disk held count as well."""

    def __init__(self) -> None:
        self.count = 0
        self.programs: Counter[str] = Counter()
        self.compiling = self.tracing = 0.0
        self._spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **details: str | int) -> None:
        if event == COMPILING:
            self.count += 1
            self.programs[str(details.get("fun_name", "?"))] += 1
            self.compiling += seconds
        elif event in TRACING:
            # Functions are traced inside each other, the inner one heard first: only the outermost is kept.
            begin = time.monotonic() - seconds
            while self._spans and self._spans[-1][0] >= begin:
                self.tracing -= self._spans.pop()[1]
            self._spans.append((begin, seconds))
            self.tracing += seconds


def check_programs(file: Path, count: int) -> None:
    """Fails where a file of tests compiled more programs than it may: the suite's time is compiling them."""
    name = file.relative_to(Path(__file__).parent).as_posix()
    most = MORE_PROGRAMS.get(name, MOST_PROGRAMS)
    if count > most:
        pytest.fail(
            f"tests/{name} compiled {count} programs and may compile {most}: share compiled steps and shapes "
            f"(docs/contributing.md); `pytest --measure tests/{name}` tells which they are",
            pytrace=False,
        )


class Measuring:
    """A plugin: the process that runs a test adds its cost to the report, the one that prints adds them up."""

    def __init__(self, compilations: Compilations) -> None:
        self._compilations = compilations
        self._before = self._now()
        self._costs: dict[str, Counter[str]] = defaultdict(Counter)
        self._programs: dict[str, Counter[str]] = defaultdict(Counter)

    def _now(self) -> dict[str, float]:
        with open("/proc/self/statm", encoding="ascii") as pages:
            resident = int(pages.read().split()[1]) * resource.getpagesize() / MIB**2
        found = self._compilations
        return {"compiling": found.compiling, "tracing": found.tracing, "grown": resident}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.when == "teardown":
            now, programs = self._now(), dict(self._compilations.programs)
            cost = {name: now[name] - self._before[name] for name in now}
            self._before = now
            self._compilations.programs.clear()
            cost["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
            item.user_properties.append(("cost", (cost, programs)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.location[0]
        costs = self._costs[file]
        costs["seconds"] += report.duration
        costs["set-up"] += report.duration * (report.when == "setup")
        if report.when == "teardown":
            cost, programs = dict(report.user_properties)["cost"]
            costs.update(cost | {"peak": max(0, cost["peak"] - costs["peak"])})
            self._programs[file].update(programs)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("cost by file (seconds; MiB)")
        terminalreporter.line("".join(f"{name:>10}" for name in COLUMNS))
        for file, costs in sorted(self._costs.items(), key=lambda pair: -pair[1]["seconds"]):
            programs = self._programs[file]
            costs["programs"] = programs.total()
            often = " ".join(f"{count}x {name}" for name, count in programs.most_common(4) if count > 1)
            terminalreporter.line("".join(f"{costs[name]:10.1f}" for name in COLUMNS) + f"  {file}  {often}")
