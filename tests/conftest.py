"""What every test stands on: simulated devices, checked shapes, one precision a process, shared files."""

import os
from pathlib import Path

DEVICE_FLAG = "--xla_force_host_platform_device_count"
FLOAT64_FOLDER = Path(__file__).parent / "float64"

# XLA reads its flags once, when the first backend starts, so they stand before anything that imports JAX.
if DEVICE_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICE_FLAG}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests import typechecker  # noqa: E402

# The hook rewrites modules as they are imported, so it stands before any import of ours.
install_import_hook(["bilevel", "models"], f"{typechecker.__name__}.check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses tests of one precision in a process of the other: they would fail for the wrong reason."""
    float64_items = [item for item in items if FLOAT64_FOLDER in item.path.parents]
    if float64_items and not jax.config.jax_enable_x64:
        raise pytest.UsageError("tests/float64 needs float64: JAX_ENABLE_X64=1 pytest tests/float64")
    if jax.config.jax_enable_x64 and len(float64_items) < len(items):
        raise pytest.UsageError(
            "these tests hold in float32: unset JAX_ENABLE_X64, or name tests/float64 alone"
        )


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with real rows and a small real model: $BILEVEL_SHARED, else `shared` beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("BILEVEL_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared files: {folder} is no folder (set BILEVEL_SHARED)")
    return folder
