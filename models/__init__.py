"""Decoder language models as pure functions on nested dicts.

Names are loaded when they are first used, so that importing this package costs next to nothing.
"""

import importlib
from typing import Any

_HOMES = {
    "Answer": "models.sampling",
    "ChoiceScores": "models.choices",
    "DecoderConfig": "models.config",
    "Found": "models.loading",
    "KNOWN": "models.known",
    "LanguageModel": "models.language_model",
    "LoraConfig": "models.lora",
    "ModelError": "models.errors",
    "RopeScaling": "models.config",
    "Sampling": "models.sampling",
    "TokenScores": "models.scores",
    "abstract_values": "models.parameters",
    "cast": "models.precision",
    "choice_log_likelihoods": "models.choices",
    "declare": "models.decoder",
    "find": "models.loading",
    "find_targets": "models.adapter_folder",
    "from_linen": "models.flax_modules",
    "from_nnx": "models.flax_modules",
    "generate": "models.sampling",
    "generate_each": "models.sampling",
    "hidden": "models.decoder",
    "init": "models.decoder",
    "load": "models.loading",
    "local_folder": "models.hub",
    "logical_axes": "models.parameters",
    "logits": "models.decoder",
    "read_adapter": "models.adapter_folder",
    "read_config": "models.folder",
    "read_folder": "models.folder",
    "row_keys": "models.sampling",
    "shardings": "models.sharding",
    "small": "models.known",
    "token_scores": "models.scores",
    "write_adapter": "models.adapter_folder",
    "write_folder": "models.folder",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
