"""Safetensors files as tensors by name: one file, or shards with their index."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
SHARD_BYTES = 5 * 10**9
"""Largest shard, as transformers has it; one tensor that is larger still gets a shard of its own."""


class Stored(NamedTuple):
    """One tensor of an open file; its values stay on disk until they are asked for.

    Attributes:
        values: sliced, it reads that part of the tensor.
    """

    file: Path
    values: Any
    shape: tuple[int, ...]
    dtype: str


def open_file(file: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Every tensor of one memory-mapped file, which stays open as long as the stack.

    Raises:
        ModelError: for a file that is truncated or no safetensors.
        FileNotFoundError: for a file that is absent.
    """
    try:
        handle = stack.enter_context(safe_open(file, "numpy"))
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: truncated or no safetensors file ({error})") from None
    return {
        name: Stored(file, values, tuple(values.get_shape()), values.get_dtype())
        for name, values in slices.items()
    }


def open_folder(folder: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    """Every tensor of a model folder.

    Raises:
        ModelError: for weights, shards or an index that are absent or broken.
    """
    index = _index(folder)
    stored: dict[str, Stored] = {}
    for shard in sorted(set(index.values())) if index else [WEIGHTS]:
        try:
            stored |= open_file(folder / shard, stack)
        except FileNotFoundError:
            raise ModelError(f"{folder / shard}: missing shard, named in {INDEX}") from None
    for name, shard in index.items():
        if name not in stored or stored[name].file.name != shard:
            raise ModelError(f"{folder / shard}: missing tensor {name}, which {INDEX} places there")
    return stored


def check(
    where: Path, stored: Mapping[str, Stored], wanted: Mapping[str, tuple[int, ...]], extras: Iterable[str]
) -> None:
    """Raises where a tensor is missing, of another shape, no float, or neither wanted nor among `extras`."""
    for name, shape in wanted.items():
        if name not in stored:
            raise ModelError(f"{where}: missing tensor {name}")
        found = stored[name]
        if found.shape != shape:
            raise ModelError(
                f"{found.file}: tensor {name} has shape {found.shape}, the config makes it {shape}"
            )
        if found.dtype not in FLOATS:
            raise ModelError(f"{found.file}: tensor {name} is stored as {found.dtype}: only floats are read")
    for name in stored.keys() - wanted.keys() - set(extras):
        raise ModelError(f"{stored[name].file}: unknown extra tensor {name}")


def write_file(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one file as torch expects it; a reader finds all of it or none."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    save_file(
        {name: np.ascontiguousarray(values) for name, values in tensors.items()}, unfinished, {"format": "pt"}
    )
    unfinished.replace(file)


def shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """Which tensors go into which file, in order, given their bytes."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": group for i, group in enumerate(groups, start=1)}


def finish_folder(folder: Path, files: Mapping[str, list[str]], total: int) -> None:
    """Writes the index of shards, and removes weights that an earlier model left in the folder."""
    if len(files) > 1:
        places = {name: file for file, names in files.items() for name in names}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True)
        (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    else:
        (folder / INDEX).unlink(missing_ok=True)
    for old in {*folder.glob("model-*-of-*.safetensors"), *folder.glob(WEIGHTS)}:
        if old.name not in files:
            old.unlink()


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
