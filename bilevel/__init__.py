"""Bilevel optimization for the data of language models.

Subpackages load when they are first used, so that `import bilevel` stays light and starts no device.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_SUBPACKAGES = (
    "core",
    "data",
    "errors",
    "layout",
    "methods",
    "objectives",
    "report",
    "runs",
    "schedule",
    "storage",
    "weighting",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
