"""Safetensors checkpoints from and to nested dicts of stacked parameters, by a family's table."""

import contextlib
import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.config import DecoderConfig
from models.decoder import declare
from models.errors import ModelError
from models.family import Family, TensorName
from models.parameters import Params, Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


class Stored(NamedTuple):
    """One tensor of an open checkpoint; its values stay on disk until they are asked for."""

    file: Path
    handle: Any
    name: str
    """Its name in the file, which may lack the family's prefix."""
    shape: tuple[int, ...]
    dtype: str


def read_parameters(
    folder: Path, family: Family, config: DecoderConfig, dtype: DTypeLike | None = None
) -> Params:
    """Reads memory-mapped weights, after checking every name and shape against the declaration.

    Args:
      folder: holds model.safetensors, or shards and their index.
      family: the checkpoint's table.
      config: the architecture.
      dtype: type of the parameters; by default the widest that the checkpoint stores.

    Returns:
      Nested dicts as `models.decoder.declare` describes them.

    Raises:
      ModelError: for files that are absent, truncated or no safetensors, and for tensors that are missing,
        unknown, of another shape, or no floating-point numbers.
    """
    with contextlib.ExitStack() as stack:
        stored = _open(folder, stack, family.prefix)
        wanted = list(_wanted(family, config))
        _check(folder, family, stored, {name: shape for entry in wanted for name, shape in entry.pieces()})
        kinds = {stored[name].dtype for entry in wanted for name, _ in entry.pieces()}
        dtype = jnp.result_type(*(FLOATS[kind] for kind in kinds)) if dtype is None else jnp.dtype(dtype)
        return unflatten_dict({entry.key.path: _load(entry, stored, dtype) for entry in wanted}, sep="/")


def write_parameters(folder: Path, family: Family, config: DecoderConfig, params: Params) -> None:
    """Writes model.safetensors as torch expects it; tied embeddings are written once.

    Raises:
      ModelError: where the parameters are not those of the architecture.
    """
    flat = flatten_dict(params, sep="/")
    wanted = list(_wanted(family, config))
    if extra := flat.keys() - {entry.key.path for entry in wanted}:
        raise ModelError(f"parameter {min(extra)} is not part of the architecture: merge or remove it first")
    tensors: dict[str, np.ndarray] = {}
    for entry in wanted:
        key, shape = entry.key, entry.tensor.shape
        if key.path not in flat or flat[key.path].shape != shape:
            found = f"has shape {flat[key.path].shape}" if key.path in flat else "is missing"
            raise ModelError(f"parameter {key.path} {found}: the architecture has it with shape {shape}")
        values = np.asarray(jax.device_get(flat[key.path]))
        for piece, (name, whole) in zip(
            values if entry.layers else values[None], entry.pieces(), strict=True
        ):
            if name not in tensors:
                tensors[name] = np.empty(whole, values.dtype)
            entry.place(tensors[name])[...] = piece
    unfinished = folder / f"{WEIGHTS}.unfinished"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.replace(folder / WEIGHTS)


class _Entry(NamedTuple):
    """One parameter that the architecture declares, beside its row of the table."""

    key: TensorName
    tensor: Tensor
    layers: int
    """How many checkpoint tensors are stacked in it; 0 where it is one and not stacked."""

    def pieces(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The checkpoint's names and shapes, in the order of the layers."""
        shape = self.tensor.shape[1:] if self.layers else self.tensor.shape
        shape = (*shape[:-1], shape[-1] * self.key.parts)
        shape = shape[::-1] if self.key.transposed else shape
        for layer in range(self.layers or 1):
            yield self.key.name.format(layer=layer), shape

    def place(self, stored: np.ndarray) -> np.ndarray:
        """Where the parameter, one layer of it, stands in a checkpoint's tensor: a view of its own shape."""
        stored = stored.T if self.key.transposed else stored
        width = stored.shape[-1] // self.key.parts
        return stored[..., self.key.part * width : (self.key.part + 1) * width]


def _wanted(family: Family, config: DecoderConfig) -> Iterator[_Entry]:
    declared = flatten_dict(declare(config), sep="/")
    for key in family.tensors:
        if key.path in declared:
            yield _Entry(key, declared[key.path], config.layers if "{layer}" in key.name else 0)


def _load(entry: _Entry, stored: Mapping[str, Stored], dtype: DTypeLike) -> jax.Array:
    values = np.empty(entry.tensor.shape, jax.dtypes.canonicalize_dtype(dtype))
    slots = values if entry.layers else values[None]
    for slot, (name, _) in zip(slots, entry.pieces(), strict=True):
        slot[...] = entry.place(stored[name].handle.get_tensor(stored[name].name))
    return jnp.asarray(values)


def _open(folder: Path, stack: contextlib.ExitStack, prefix: str) -> dict[str, Stored]:
    """Every tensor of the folder by its name with the prefix; handles live as long as the stack."""
    index = _index(folder)
    stored: dict[str, Stored] = {}
    for file in sorted({folder / shard for shard in index.values()}) if index else [folder / WEIGHTS]:
        try:
            handle = stack.enter_context(safe_open(file, "numpy"))
            names = list(handle.keys())
        except FileNotFoundError:
            raise ModelError(f"{file}: missing shard, named in {INDEX}") from None
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: truncated or no safetensors file ({error})") from None
        for name in names:
            part = handle.get_slice(name)
            stored[name] = Stored(file, handle, name, tuple(part.get_shape()), part.get_dtype())
    if not any(name.startswith(prefix) for name in stored):
        return {prefix + name: found for name, found in stored.items()}
    return stored


def _index(folder: Path) -> dict[str, str]:
    """Which shard holds which tensor; empty for a single file."""
    path = folder / INDEX
    if not path.is_file():
        if not (folder / WEIGHTS).is_file():
            raise ModelError(
                f"{folder}: no weights: neither {WEIGHTS} nor {INDEX} (other formats are not read)"
            )
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = set(index.values())
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: no index of shards ({error!r})") from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ModelError(f"{path}: shard {shard!r} is no plain file name")
    if not shards:
        raise ModelError(f"{path}: names no shard")
    return index


def _check(
    folder: Path, family: Family, stored: Mapping[str, Stored], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in wanted.items():
        if name not in stored:
            raise ModelError(f"{folder}: missing tensor {name}")
        found = stored[name]
        if found.shape != shape:
            raise ModelError(
                f"{found.file}: tensor {name} has shape {found.shape}, the config makes it {shape}"
            )
        if found.dtype not in FLOATS:
            raise ModelError(f"{found.file}: tensor {name} is stored as {found.dtype}: only floats are read")
    for name, found in stored.items():
        if name not in wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in family.ignored):
            raise ModelError(f"{found.file}: unknown extra tensor {name}")
