"""What every test stands on: simulated devices, cheap compilation, checked shapes, one precision a process."""

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from jaxtyping import install_import_hook

from tests import typechecker
from tests.measuring import Compilations, Measuring, check_programs

# The hook rewrites modules as they are imported, so it stands before any import of ours. It makes tracing dearer, and
# what runs in float64 has its shapes checked in float32 too.
if not jax.config.jax_enable_x64:
    install_import_hook(["bilevel", "models"], f"{typechecker.__name__}.check")

FLOAT64_FOLDER = Path(__file__).parent / "float64"
SIMULATED_DEVICES = "--xla_force_host_platform_device_count=8"
# Tests compile many programs and run each a few times. Without these a program costs XLA up to six times as much.
CHEAP_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    *(["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []),
)
give_back_memory = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
COMPILATIONS = Compilations()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure", action="store_true", help="end with what each file of tests costs")
    parser.addoption("--optimized", action="store_true", help="let XLA optimize, as it does for users")


def pytest_configure(config: pytest.Config) -> None:
    """Sets XLA's flags, which it reads once, when the first backend starts; programs that tests start inherit them."""
    cheap = os.environ["JAX_PLATFORMS"] == "cpu" and not config.getoption("optimized")
    given = os.environ.get("XLA_FLAGS", "")
    flags = [SIMULATED_DEVICES, *(CHEAP_COMPILATION if cheap else ())]
    os.environ["XLA_FLAGS"] = " ".join([*(flag for flag in flags if flag.split("=")[0] not in given), given])
    # Tracing makes objects by the million and few cycles: the default threshold costs a sixth of a test's time.
    gc.set_threshold(200_000, 20, 50)
    if config.getoption("measure"):
        config.pluginmanager.register(Measuring(COMPILATIONS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses tests of one precision in a process of the other: they would fail for the wrong reason."""
    float64_items = [item for item in items if FLOAT64_FOLDER in item.path.parents]
    if float64_items and not jax.config.jax_enable_x64:
        raise pytest.UsageError("tests/float64 needs float64: JAX_ENABLE_X64=1 pytest tests/float64")
    if jax.config.jax_enable_x64 and len(float64_items) < len(items):
        raise pytest.UsageError(
            "these tests hold in float32: unset JAX_ENABLE_X64, or name tests/float64 alone"
        )


@pytest.fixture(autouse=True, scope="module")
def programs_of_this_file(request: pytest.FixtureRequest) -> Iterator[None]:
    """Counts a file's compiled programs and lets go of them when it ends: kept for ever, they fill the memory."""
    before = COMPILATIONS.count
    yield
    count = COMPILATIONS.count - before
    jax.clear_caches()
    gc.collect()
    give_back_memory(0)
    check_programs(request.path, count)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with real rows and a small real model: $BILEVEL_SHARED, else `shared` beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("BILEVEL_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared files: {folder} is no folder (set BILEVEL_SHARED)")
    return folder


@pytest.fixture(scope="session")
def stories_folder(shared_folder: Path) -> Path:
    """The folder of a small trained model."""
    folder = shared_folder / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no trained model: {folder} is no folder")
    return folder
