"""PEFT adapter folders, in and out."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from models.config import DecoderConfig
from models.errors import ModelError
from models.family import TensorName, family_of
from models.folder import FAMILIES
from models.lora import TARGETS, LoraConfig, declare
from models.parameters import Params
from models.stored import Stored, check, open_file, write_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Settings of PEFT that would change what an adapter computes or holds, and the only values that are read.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
}


def write_adapter(
    path: str | os.PathLike[str],
    config: DecoderConfig,
    settings: LoraConfig,
    adapter: Params,
    *,
    base: str = "",
) -> None:
    """Writes a folder that PEFT loads onto the model that it was trained on.

    Args:
        path: where to; made where it is absent.
        config: the model's architecture.
        settings: the adapter's.
        adapter: its parameters.
        base: folder or hub name of the model, for those who load the adapter by itself.

    Raises:
        ModelError: where adapter and settings disagree, or the architecture is no checkpoint's.

    Examples:
        >>> from models import lora, small
        >>> config, settings = small(13, 8, heads=2, kv_heads=1), LoraConfig(rank=2)
        >>> write_adapter("adapter", config, settings, lora.init(config, settings, jax.random.key(0)))
        >>> sorted(path.name for path in Path("adapter").iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    expected = declare(config, settings)["layers"]
    modules = _modules(config)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for module, keys in modules.items():
        chosen = {target: key for target, key in keys.items() if target in settings.targets}
        if not chosen:
            continue
        ranks[module] = settings.rank * len(chosen)
        factors = [_factors(adapter, expected, target) for target in chosen]
        for layer in range(config.layers):
            blocks = _Blocks.of([(a[layer], b[layer]) for a, b in factors], list(chosen.values()))
            name = f"{_PREFIX}{module.format(layer=layer)}"
            tensors |= {f"{name}.lora_A.weight": blocks.a.T, f"{name}.lora_B.weight": blocks.b.T}
    short = {module: _short(module, modules) for module in ranks}
    # Several of our maps may be one of theirs; its rank is then their ranks' sum, at the same scale.
    wider = {module: rank // settings.rank for module, rank in ranks.items() if rank != settings.rank}
    text = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "use_rslora": settings.rank_stabilised,
        "target_modules": sorted(short.values()),
        "rank_pattern": {short[module]: ranks[module] for module in wider},
        "alpha_pattern": {
            short[module]: settings.alpha * (n**0.5 if settings.rank_stabilised else n)
            for module, n in wider.items()
        },
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": config.mlp == "plain",
        "inference_mode": True,
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


def read_adapter(
    path: str | os.PathLike[str], config: DecoderConfig, dtype: DTypeLike | None = None
) -> tuple[LoraConfig, Params]:
    """Reads an adapter that PEFT or `write_adapter` wrote.

    Args:
        path: the folder.
        config: the architecture of the model that it belongs to.
        dtype: type of the parameters; by default the type in which they are stored.

    Returns:
        The settings and the adapter. Where PEFT gave a module a rank or an alpha of its own, or adapted several of
        our maps as one, factors are as wide as there and carry the difference in scale.

    Raises:
        ModelError: for anything that is absent, broken, or no plain LoRA; one line that names file and tensor.

    Examples:
        >>> from models import lora, small
        >>> config, settings = small(13, 8, heads=2, kv_heads=1), LoraConfig(rank=2)
        >>> write_adapter("adapter", config, settings, lora.init(config, settings, jax.random.key(0)))
        >>> read_adapter("adapter", config)[0].targets
        ('query', 'value')
    """
    folder = Path(path)
    raw = _read_config(folder)
    with contextlib.ExitStack() as stack:
        try:
            stored = open_file(folder / WEIGHTS, stack)
        except FileNotFoundError:
            raise ModelError(f"{folder}: no {WEIGHTS} (other formats are not read)") from None
        modules = {
            module: keys
            for module, keys in _modules(config).items()
            if f"{_PREFIX}{module.format(layer=0)}.lora_A.weight" in stored
        }
        if not modules:
            raise ModelError(f"{folder / WEIGHTS}: adapts no linear map of a layer of this architecture")
        targets = tuple(target for target in TARGETS if any(target in keys for keys in modules.values()))
        settings = LoraConfig(raw["r"], float(raw["lora_alpha"]), targets, bool(raw.get("use_rslora")))
        sizes = {module: _rank(raw, module) for module in modules}
        check(folder, stored, dict(_shapes(config, modules, {m: rank for m, (rank, _) in sizes.items()})), ())
        adapter: Params = {}
        for module, keys in modules.items():
            rank, alpha = sizes[module]
            ours = LoraConfig(rank, alpha, targets, settings.rank_stabilised)
            for target, key in keys.items():
                factors = _read_module(stored, module, key, config.layers, ours.scale / settings.scale, dtype)
                adapter.setdefault(TARGETS[target], {})[target] = factors
    return settings, {"layers": adapter}


def find_targets(config: DecoderConfig, names: Sequence[str]) -> tuple[str, ...]:
    """The linear maps of an architecture that go by these names.

    Args:
        config: the architecture.
        names: as the checkpoint has them (`q_proj`, `self_attn.q_proj`, GPT-2's `c_attn` for three maps at once), as
            `models.lora.TARGETS` has them, or `all`.

    Returns:
        Keys of `models.lora.TARGETS`, in its order.

    Raises:
        ModelError: for a name that matches nothing, and for no name.

    Examples:
        >>> find_targets(DecoderConfig(13, 8, 1, 2, 1, 8), ("v_proj", "self_attn.q_proj"))
        ('query', 'value')
    """
    known: dict[str, set[str]] = {}
    for module, keys in _modules(config).items():
        parts = module.split(".")
        for count in (1, 2):
            known.setdefault(".".join(parts[-count:]), set()).update(keys)
        for target in keys:
            known.setdefault(target, set()).add(target)
        known.setdefault("all", set()).update(keys)
    for name in names or [""]:
        if name not in known:
            modules = _modules(config)
            choices = [*(_short(module, modules) for module in modules), "all"]
            raise ModelError(
                f"no linear map of a layer is called {name!r}: choose among {', '.join(choices)}"
            )
    found = set().union(*(known[name] for name in names))
    return tuple(target for target in TARGETS if target in found)


class _Blocks(NamedTuple):
    """Factors of one module of a checkpoint: [inputs, rank] and [rank, outputs]."""

    a: np.ndarray
    b: np.ndarray

    @classmethod
    def of(cls, factors: list[tuple[np.ndarray, np.ndarray]], keys: list[TensorName]) -> "_Blocks":
        """Several maps side by side: their ranks add up, and each writes into its own part of the outputs."""
        rank, width = factors[0][1].shape
        b = np.zeros((rank * len(keys), width * keys[0].parts), factors[0][1].dtype)
        for number, (key, (_, own)) in enumerate(zip(keys, factors, strict=True)):
            b[number * rank : (number + 1) * rank, key.part * width : (key.part + 1) * width] = own
        return cls(np.concatenate([a for a, _ in factors], axis=1), b)


def _modules(config: DecoderConfig) -> dict[str, dict[str, TensorName]]:
    """The checkpoint's linear modules by name, each with our targets that it holds."""
    modules: dict[str, dict[str, TensorName]] = {}
    for key in family_of(FAMILIES.values(), config).tensors:
        parts = key.path.split("/")
        if len(parts) == 4 and parts[3] == "kernel":
            modules.setdefault(key.name.removesuffix(".weight"), {})[parts[2]] = key
    return modules


def _short(module: str, modules: Mapping[str, Any]) -> str:
    """What PEFT calls a module: the last part of its name, or two where others end alike."""
    parts = module.split(".")
    alike = sum(other.endswith(f".{parts[-1]}") for other in modules)
    return parts[-1] if alike == 1 else ".".join(parts[-2:])


def _shapes(
    config: DecoderConfig, modules: Mapping[str, Mapping[str, TensorName]], ranks: Mapping[str, int]
) -> Iterator[tuple[str, tuple[int, int]]]:
    for module, keys in modules.items():
        target, key = next(iter(keys.items()))
        factors = declare(config, LoraConfig(ranks[module], 1.0, (target,)))["layers"][TARGETS[target]][
            target
        ]
        _, inputs, rank = factors["lora_a"].shape
        outputs = factors["lora_b"].shape[2] * key.parts
        for layer in range(config.layers):
            name = f"{_PREFIX}{module.format(layer=layer)}"
            yield f"{name}.lora_A.weight", (rank, inputs)
            yield f"{name}.lora_B.weight", (outputs, rank)


def _factors(adapter: Params, expected: Params, target: str) -> tuple[np.ndarray, np.ndarray]:
    """One target's factors on the host, checked against their declaration."""
    part = TARGETS[target]
    found = adapter["layers"].get(part, {}).get(target)
    if found is None:
        raise ModelError(f"the adapter has no {part}/{target}, which its settings name as a target")
    for name, tensor in expected[part][target].items():
        if found[name].shape != tensor.shape:
            raise ModelError(
                f"{part}/{target}/{name} has shape {found[name].shape}, the settings make it {tensor.shape}: "
                "merge an adapter of mixed ranks instead"
            )
    return tuple(np.asarray(jax.device_get(found[name])) for name in ("lora_a", "lora_b"))  # type: ignore[return-value]


def _read_module(
    stored: Mapping[str, Stored],
    module: str,
    key: TensorName,
    layers: int,
    scale: float,
    dtype: DTypeLike | None,
) -> Params:
    names = [f"{_PREFIX}{module.format(layer=layer)}" for layer in range(layers)]
    a = np.stack([stored[f"{name}.lora_A.weight"].values[:].T for name in names])
    whole = np.stack([stored[f"{name}.lora_B.weight"].values[:].T for name in names])
    width = whole.shape[2] // key.parts
    b = whole[..., key.part * width : (key.part + 1) * width]
    return {"lora_a": jnp.asarray(a, dtype), "lora_b": jnp.asarray(b, dtype) * scale}


def _rank(raw: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and alpha of a module, which may have a pattern of its own."""

    def of(patterns: Mapping[str, Any] | None, default: Any) -> Any:
        name = module.format(layer=0)
        return next((v for k, v in (patterns or {}).items() if f".{name}".endswith(f".{k}")), default)

    return of(raw.get("rank_pattern"), raw["r"]), float(of(raw.get("alpha_pattern"), raw["lora_alpha"]))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG}: not a PEFT adapter folder")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        numbers = (raw["r"], raw["lora_alpha"])
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path}: no settings of an adapter ({error!r})") from None
    for name, values in _PLAIN.items():
        if raw.get(name) not in values:
            raise ModelError(f"{path}: {name} {raw.get(name)!r} is not supported: only {values[0]!r} is")
    if type(numbers[0]) is not int or type(numbers[1]) not in (int, float):
        raise ModelError(f"{path}: r and lora_alpha must be numbers, not {numbers[0]!r} and {numbers[1]!r}")
    return raw
