"""How a family of Hugging Face checkpoints names its settings and its tensors, as data.

A family is two tables: which key of `config.json` holds which field of `DecoderConfig`, and which tensor of a
checkpoint holds which parameter. Reading and writing follow the same tables, so that neither drifts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from models.config import DecoderConfig
from models.errors import ModelError

REQUIRED = object()
"""Stands for the default of a setting that has none."""

_FIELD_TYPES: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(DecoderConfig)}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


class Setting(NamedTuple):
    """One field of `DecoderConfig` and the key of `config.json` that holds it, with the family's default."""

    field: str
    key: str
    default: Any = REQUIRED


class TensorName(NamedTuple):
    """One parameter, by its path joined with "/", and its name in checkpoints ({layer} where stacked)."""

    path: str
    name: str
    transposed: bool = False


class Family(NamedTuple):
    """What `models.folder` needs to know to read and write one kind of checkpoint."""

    model_type: str
    architecture: str
    settings: tuple[Setting, ...]
    fixed: Mapping[str, Any]
    """Keys that may be absent but must hold this value where they stand: what the decoder does not vary."""
    tensors: tuple[TensorName, ...]
    ignored: tuple[str, ...]
    """Patterns of tensor names that checkpoints may carry without meaning."""


def linear_names(path: str, name: str) -> tuple[TensorName, TensorName]:
    """Names of a linear map; torch stores kernels as [outputs, inputs]."""
    return TensorName(f"{path}/kernel", f"{name}.weight", transposed=True), TensorName(
        f"{path}/bias", f"{name}.bias"
    )


def config_from_raw(family: Family, raw: Mapping[str, Any]) -> DecoderConfig:
    """The architecture that a raw `config.json` describes.

    Raises:
      ModelError: for a missing key, or a setting that the decoder does not have.
    """
    for key, value in family.fixed.items():
        if raw.get(key) not in (None, value):
            raise ModelError(
                f"{key} {raw[key]!r} is not supported: {family.model_type} models here have {value!r}"
            )
    flat = {**raw, "rope_theta": _rope_theta(raw)}
    fields: dict[str, Any] = {}
    for setting in family.settings:
        value = flat.get(setting.key)
        if value is None and setting.default is REQUIRED:
            raise ModelError(f"no {setting.key}, which every {family.model_type} model states")
        value = setting.default if value is None else value
        if value is not None:
            fields[setting.field] = _typed(setting, value)
    fields.setdefault("kv_heads", fields["heads"])
    return DecoderConfig(**fields)


def raw_from_config(
    family: Family, config: DecoderConfig, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A raw `config.json` of the architecture: a copy of `source` where only what differs is changed.

    Args:
      family: the tables.
      config: the architecture.
      source: the raw configuration that the model came from; without it a fresh one is written.

    Returns:
      What to write as JSON.
    """
    wanted = {setting.key: getattr(config, setting.field) for setting in family.settings}
    if source is None:
        return {
            "architectures": [family.architecture],
            "model_type": family.model_type,
            **family.fixed,
            **wanted,
        }
    stated = config_from_raw(family, source)
    raw = dict(source)
    for setting in family.settings:
        if getattr(stated, setting.field) == getattr(config, setting.field):
            continue
        if setting.key == "rope_theta" and "rope_parameters" in raw:
            raw["rope_parameters"] = {**raw["rope_parameters"], "rope_theta": wanted["rope_theta"]}
        else:
            raw[setting.key] = wanted[setting.key]
    return raw


def _typed(setting: Setting, value: Any) -> int | float | bool:
    """The value in its field's type; JSON writes whole floats as integers and knows no other coercion."""
    wanted = _FIELD_TYPES[setting.field]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ModelError(f"{setting.key} must be {_TYPE_NAMES[wanted]}, not {value!r}")
    return value


def _rope_theta(raw: Mapping[str, Any]) -> float | None:
    """The rotary base, from `rope_theta` (before transformers 5) or from `rope_parameters` (since)."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise ModelError(f"rope_parameters must be an object, not {parameters!r}")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise ModelError(f"rope type {kind!r} is not supported: only 'default' is")
    return parameters.get("rope_theta", raw.get("rope_theta"))
