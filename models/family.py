"""How a family of Hugging Face checkpoints names its settings and its tensors, as data.

A family is two tables: which key of `config.json` holds which field of `DecoderConfig`, and which tensor of a
checkpoint holds which parameter. Reading and writing follow the same tables, so that neither drifts.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

from models.config import DecoderConfig, RopeScaling
from models.config_keys import unknown_key, unknown_rope_key
from models.errors import ModelError

REQUIRED = object()
"""Stands for the default of a setting that has none."""

_FIELD_TYPES: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(DecoderConfig)}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}
# Field of RopeScaling and its key, which is the same in both spellings of the rotary settings.
_ROPE_KEYS = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


_NESTED = ("layer_types", "rope_parameters", "rope_scaling")
# What transformers asks of every configuration; no family states it.
_ASSUMED: dict[str, Any] = {"is_causal": True, "partial_rotary_factor": 1.0}
_ROPE_TYPES = ("default", "llama3")


class Setting(NamedTuple):
    """One field of `DecoderConfig` and the key of `config.json` that holds it, with the family's default."""

    field: str
    key: str
    default: Any = REQUIRED


class TensorName(NamedTuple):
    """One parameter, by its path joined with "/", and its name in checkpoints ({layer} where stacked).

    Where a checkpoint keeps several parameters in one tensor, each is one of `parts` equal pieces of the last
    axis, as it stands after transposing.
    """

    path: str
    name: str
    transposed: bool = False
    part: int = 0
    parts: int = 1


class Family(NamedTuple):
    """What `models.folder` needs to know to read and write one kind of checkpoint.

    Attributes:
        model_type: its name in `config.json`.
        architecture: the name of its class in transformers.
        settings: which key holds which field.
        fixed: keys that may be absent but must hold this value where they stand: what the decoder does not vary.
        constants: fields of `DecoderConfig` that the family fixes without saying so in `config.json`.
        tensors: which tensor holds which parameter.
        ignored: patterns of tensor names that checkpoints may carry without meaning.
        prefix: what the names of some checkpoints lack: those that were written without the head.
        idle: further keys that may stand there and change nothing in this family.
    """

    model_type: str
    architecture: str
    settings: tuple[Setting, ...]
    fixed: Mapping[str, Any]
    constants: Mapping[str, Any]
    tensors: tuple[TensorName, ...]
    ignored: tuple[str, ...]
    prefix: str = ""
    idle: tuple[str, ...] = ()


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
    for key, value in {**_ASSUMED, **family.fixed}.items():
        if raw.get(key) is not None and raw[key] != value:
            raise ModelError(
                f"{key} {raw[key]!r} is not supported: {family.model_type} models here have {value!r}"
            )
    if set(raw.get("layer_types") or ()) - {"full_attention"}:
        raise ModelError(f"layer_types {raw['layer_types']!r} is not supported: only full_attention is")
    flat = dict(raw)
    flat["rope_theta"], flat["rope_scaling"] = _rope(raw)
    fields = dict(family.constants)
    for setting in family.settings:
        value = flat.get(setting.key)
        if value is None and setting.default is REQUIRED:
            raise ModelError(f"no {setting.key}, which every {family.model_type} model states")
        # An explicit null means something where None is a value of the field, and is an absent key elsewhere.
        if value is None and not (setting.key in raw and _optional(setting)):
            value = setting.default
        if value is not None or _optional(setting):
            fields[setting.field] = _typed(setting, value)
    unknown = unknown_key(raw, _known(family))
    if unknown is not None:
        raise ModelError(
            f"unknown setting {unknown} {_brief(raw[unknown])}: remove it if {family.model_type} models compute the "
            "same without it"
        )
    fields.setdefault("kv_heads", fields["heads"])
    fields.setdefault("mlp_width", 4 * fields["width"])
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

    Raises:
        ModelError: for an architecture that the family does not have.
    """
    wanted = {setting.key: getattr(config, setting.field) for setting in family.settings}
    if config.rope_scaling is not None and "rope_scaling" in wanted:
        scaling = {key: getattr(config.rope_scaling, field) for field, key in _ROPE_KEYS.items()}
        wanted["rope_scaling"] = {"rope_type": "llama3", **scaling}
    if source is None:
        raw = {"architectures": [family.architecture], "model_type": family.model_type}
        raw |= {**family.fixed, **wanted}
    else:
        raw = _changed(family, config, source, wanted)
    described = config_from_raw(family, raw)
    for field in dataclasses.fields(config):
        stated, possible = getattr(config, field.name), getattr(described, field.name)
        if stated != possible:
            raise ModelError(
                f"{field.name} {stated!r} cannot be written: a {family.model_type} model like this has {possible!r}"
            )
    return raw


def _known(family: Family) -> frozenset[str]:
    keys = {setting.key for setting in family.settings}
    return frozenset({*keys, *family.fixed, *_ASSUMED, *_NESTED, *family.idle})


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def family_of(families: Iterable[Family], config: DecoderConfig) -> Family:
    """The first family that can hold the architecture.

    Raises:
        ModelError: when none can.
    """
    reasons = []
    for family in families:
        try:
            raw_from_config(family, config)
        except ModelError as error:
            reasons.append(f"{family.model_type}: {error}")
        else:
            return family
    raise ModelError(f"no family of checkpoints holds this architecture ({'; '.join(reasons)})")


def _changed(
    family: Family, config: DecoderConfig, source: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    stated = config_from_raw(family, source)
    raw = dict(source)
    for setting in family.settings:
        if getattr(stated, setting.field) == getattr(config, setting.field):
            continue
        if setting.key in ("rope_theta", "rope_scaling") and "rope_parameters" in raw:
            scaling = wanted["rope_scaling"] or {"rope_type": "default"}
            raw["rope_parameters"] = {"rope_theta": wanted["rope_theta"], **scaling}
        else:
            raw[setting.key] = wanted[setting.key]
    if stated.layers != config.layers:
        raw.pop("layer_types", None)
    return raw


def _optional(setting: Setting) -> bool:
    return type(None) in get_args(_FIELD_TYPES[setting.field])


def _typed(setting: Setting, value: Any) -> Any:
    """The value in its field's type; JSON writes whole floats as integers and knows no other coercion."""
    wanted = _FIELD_TYPES[setting.field]
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) not in (get_args(wanted) or (wanted,)):
        name = " or ".join(_TYPE_NAMES.get(kind, "null") for kind in get_args(wanted) or (wanted,))
        raise ModelError(f"{setting.key} must be {name}, not {value!r}")
    return value


def _rope(raw: Mapping[str, Any]) -> tuple[float | None, RopeScaling | None]:
    """The rotary base and scaling, as transformers spells them before version 5 and since."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise ModelError(f"rope_parameters must be an object, not {parameters!r}")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise ModelError(f"rope type {kind!r} is not supported: only 'default' and 'llama3' are")
    unknown = unknown_rope_key(parameters, frozenset(_ROPE_KEYS.values()))
    if unknown is not None:
        raise ModelError(f"rope setting {unknown} {_brief(parameters[unknown])} is not supported")
    scaling = None
    if kind == "llama3":
        for key in _ROPE_KEYS.values():
            if type(parameters.get(key)) not in (int, float):
                raise ModelError(f"rope type 'llama3' needs a number as {key}, not {parameters.get(key)!r}")
        scaling = RopeScaling(**{field: parameters[key] for field, key in _ROPE_KEYS.items()})
    return parameters.get("rope_theta", raw.get("rope_theta")), scaling
