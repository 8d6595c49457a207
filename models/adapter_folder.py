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

from models.adapter_settings import CONFIG, AdapterSettings, read_settings
from models.config import DecoderConfig
from models.errors import ModelError
from models.family import TensorName, family_of
from models.folder import FAMILIES
from models.lora import TARGETS, LoraConfig, declare
from models.parameters import Params
from models.stored import Stored, check, open_file, write_file

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


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
        The settings and the adapter. Where PEFT gave a module a rank or an alpha of its own, in all layers or in some,
        or adapted several of our maps as one, factors are as wide as there and carry the difference in scale.

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
    with contextlib.ExitStack() as stack:
        try:
            stored = open_file(folder / WEIGHTS, stack)
        except FileNotFoundError:
            raise _absent(folder) from None
        modules = {
            module: keys
            for module, keys in _modules(config).items()
            if any(f"{_PREFIX}{name}.lora_A.weight" in stored for name in _in_layers(module, config))
        }
        found = read_settings(folder, (name for module in modules for name in _in_layers(module, config)))
        if not modules:
            raise ModelError(f"{folder / WEIGHTS}: adapts no linear map of a layer of this architecture")
        targets = tuple(target for target in TARGETS if any(target in keys for keys in modules.values()))
        settings = LoraConfig(found.rank, found.alpha, targets, found.rank_stabilised)
        check(folder, stored, dict(_shapes(config, modules, found)), ())
        adapter: Params = {}
        for module, keys in modules.items():
            names = _in_layers(module, config)
            scales = [found.scale_of(name) / settings.scale for name in names]
            for target, key in keys.items():
                factors = _read_module(stored, names, key, scales, dtype)
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


def _in_layers(module: str, config: DecoderConfig) -> list[str]:
    """The names of a module in every layer."""
    return [module.format(layer=layer) for layer in range(config.layers)]


def _shapes(
    config: DecoderConfig, modules: Mapping[str, Mapping[str, TensorName]], found: AdapterSettings
) -> Iterator[tuple[str, tuple[int, int]]]:
    for module, keys in modules.items():
        target, key = next(iter(keys.items()))
        factors = declare(config, LoraConfig(1, 1.0, (target,)))["layers"][TARGETS[target]][target]
        inputs, outputs = factors["lora_a"].shape[1], factors["lora_b"].shape[2] * key.parts
        for name in _in_layers(module, config):
            rank = found.rank_of(name)
            yield f"{_PREFIX}{name}.lora_A.weight", (rank, inputs)
            yield f"{_PREFIX}{name}.lora_B.weight", (outputs, rank)


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
    names: Sequence[str],
    key: TensorName,
    scales: Sequence[float],
    dtype: DTypeLike | None,
) -> Params:
    """One target's factors over the layers; those of a layer of lower rank are filled up with zeros."""
    a = [stored[f"{_PREFIX}{name}.lora_A.weight"].values[:].T for name in names]
    whole = [stored[f"{_PREFIX}{name}.lora_B.weight"].values[:].T for name in names]
    rank = max(len(layer) for layer in whole)
    width = whole[0].shape[1] // key.parts
    b = [layer[:, key.part * width : (key.part + 1) * width] for layer in whole]
    stacked_a = np.stack([np.pad(layer, ((0, 0), (0, rank - layer.shape[1]))) for layer in a])
    stacked_b = np.stack([np.pad(layer, ((0, rank - len(layer)), (0, 0))) for layer in b])
    lora_b = jnp.asarray(stacked_b, dtype)
    return {
        "lora_a": jnp.asarray(stacked_a, dtype),
        "lora_b": lora_b * jnp.asarray(scales, lora_b.dtype)[:, None, None],
    }


def _absent(folder: Path) -> ModelError:
    if not (folder / CONFIG).is_file():
        return ModelError(f"{folder}: no {CONFIG}: not a PEFT adapter folder")
    return ModelError(f"{folder}: no {WEIGHTS} (other formats are not read)")
