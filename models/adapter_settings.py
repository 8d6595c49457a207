"""What the settings of a PEFT adapter say: every key is read as PEFT reads it, changes nothing, or is refused."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models.errors import ModelError
from models.lora import LoraConfig

CONFIG = "adapter_config.json"

_READ = (
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
)
# What a key must say for the factors to mean W + scale B A, on the model as it is and at every position. Of the ways
# to begin an adapter these leave the model's own weights alone; PEFT takes what others (PiSSA, OLoRA, CorDA, LoftQ,
# LoRA-GA) put into the adapter out of the weights whenever it loads one.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
# What does not change what given factors mean: where they come from, how they were begun, how others compute.
_IDLE = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)


class AdapterSettings(NamedTuple):
    """Settings of an adapter.

    Attributes:
        rank: of modules without a rank of their own.
        alpha: of modules without an alpha of their own.
        rank_stabilised: whether products are divided by the root of the rank.
        ranks: rank by pattern of a module's name.
        alphas: alpha by pattern of a module's name.
    """

    rank: int
    alpha: float
    rank_stabilised: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its whole name in the model."""
        return _matched(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        alpha = _matched(self.alphas, module, self.alpha)
        return LoraConfig(self.rank_of(module), alpha, rank_stabilised=self.rank_stabilised).scale


def read_settings(folder: Path, modules: Iterable[str]) -> AdapterSettings:
    """Reads the settings of an adapter folder.

    Args:
        folder: the folder.
        modules: whole names of the modules that its weights adapt.

    Raises:
        ModelError: no settings, or one that is not supported or unknown; one line that names file and key.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG}: not a PEFT adapter folder")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = raw["r"], raw["lora_alpha"]
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path}: no settings of an adapter ({error!r})") from None
    try:
        _check_keys(raw)
        if type(rank) is not int or not _is_number(alpha):
            raise ModelError(f"r and lora_alpha must be numbers, not {rank!r} and {alpha!r}")
        ranks = _patterns(raw, "rank_pattern", lambda value: type(value) is int and value > 0)
        alphas = _patterns(raw, "alpha_pattern", lambda value: _is_number(value) and value > 0)
        for module in modules:
            if not _is_target(raw, module):
                raise ModelError(
                    f"the weights adapt {module}, which target_modules and exclude_modules leave out: mend either"
                )
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except re.error as error:
        raise ModelError(f"{path}: a pattern is no regular expression ({error})") from None
    return AdapterSettings(rank, float(alpha), bool(raw.get("use_rslora")), ranks, alphas)


def _check_keys(raw: Mapping[str, Any]) -> None:
    for name, values in _ONLY.items():
        if raw.get(name) not in values:
            raise ModelError(f"{name} {raw.get(name)!r} is not supported: only {values[0]!r} is")
    for name, value in raw.items():
        # What PEFT adds to its settings is off where it is null, false or empty.
        if value and name not in (*_READ, *_ONLY) and name not in _IDLE:
            raise ModelError(f"{name} {value!r} is not supported: merge this adapter with PEFT instead")


def _patterns(raw: Mapping[str, Any], name: str, allowed: Any) -> dict[str, Any]:
    found = raw.get(name) or {}
    if not isinstance(found, dict) or not all(map(allowed, found.values())):
        raise ModelError(f"{name} must hold positive numbers by module, not {found!r}")
    for pattern in found:
        re.compile(pattern)
    return found


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that is the end of a name, from a dot on, as PEFT matches them."""
    return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _is_target(raw: Mapping[str, Any], module: str) -> bool:
    targets = raw.get("target_modules")
    if targets not in (None, "all-linear") and not _is_named(targets, module):
        return False
    return not (raw.get("exclude_modules") and _is_named(raw["exclude_modules"], module))


def _is_named(names: Any, module: str) -> bool:
    """Whether a regular expression matches the whole of a name, or one of several names ends it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
