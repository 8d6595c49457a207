"""Bilevel optimization for the data of language models.

    import bilevel, models

    model = models.load("path/to/llama", lora=models.LoraConfig(rank=16))
    data = bilevel.data.load("pool.jsonl", "trusted.jsonl", tokenizer=model.tokenizer)
    method = bilevel.methods.bds(model, data, training=bilevel.TrainingSettings(steps=500))
    found = bilevel.run(method, data, model, folder="runs/mine")

Names load when they are first used, so that `import bilevel` stays light and starts no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bilevel.shadowed import uncover_models

if TYPE_CHECKING:
    from bilevel.methods import Method as Method
    from bilevel.methods import TrainingSettings as TrainingSettings
    from bilevel.model import Model as Model
    from bilevel.model import as_model as as_model
    from bilevel.runs.job import job_of as job
    from bilevel.runs.running import Finished as Finished
    from bilevel.runs.running import run as run

__version__ = "0.1.0"

_SUBPACKAGES = (
    "core",
    "curate",
    "data",
    "errors",
    "evaluation",
    "layout",
    "methods",
    "objectives",
    "report",
    "runs",
    "schedule",
    "storage",
    "weighting",
)
_HOMES = {
    "Finished": ("bilevel.runs.running", "Finished"),
    "Method": ("bilevel.methods", "Method"),
    "Model": ("bilevel.model", "Model"),
    "TrainingSettings": ("bilevel.methods", "TrainingSettings"),
    "as_model": ("bilevel.model", "as_model"),
    "job": ("bilevel.runs.job", "job_of"),
    "run": ("bilevel.runs.running", "run"),
}

__all__ = ["Finished", "Method", "Model", "TrainingSettings", "__version__", "as_model", "job", "run"]

uncover_models()


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        home, attribute = _HOMES[name]
        return getattr(importlib.import_module(home), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES, *_HOMES})
