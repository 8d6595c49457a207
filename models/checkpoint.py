"""Checkpoints from and to nested dicts of stacked parameters, by a family's table."""

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from jaxtyping import DTypeLike, PyTree

from models.config import DecoderConfig
from models.decoder import declare
from models.errors import ModelError
from models.family import Family, TensorName
from models.parameters import Params, Tensor
from models.stored import FLOATS, SHARD_BYTES, Stored, check, finish_folder, open_folder, shards, write_file

_ROWS_AT_ONCE = 8192


def read_parameters(
    folder: Path,
    family: Family,
    config: DecoderConfig,
    dtype: DTypeLike | None = None,
    shardings: PyTree[Sharding] | None = None,
) -> Params:
    """Reads memory-mapped weights, after checking every name and shape against the declaration.

    Args:
        folder: holds model.safetensors, or shards and their index.
        family: the checkpoint's table.
        config: the architecture.
        dtype: type of the parameters; by default the widest that the checkpoint stores.
        shardings: where each parameter goes, one for all or nested as the parameters are; a process reads only
            what its devices hold. By default all goes to the default device.

    Returns:
        Nested dicts as `models.decoder.declare` describes them.

    Raises:
        ModelError: for files that are absent, truncated or no safetensors, and for tensors that are missing,
            unknown, of another shape, or no floating-point numbers; for tied embeddings whose second copy differs.
    """
    with contextlib.ExitStack() as stack:
        stored = open_folder(folder, stack)
        if not any(name.startswith(family.prefix) for name in stored):
            stored = {family.prefix + name: found for name, found in stored.items()}
        wanted = list(_wanted(family, config))
        shapes = {name: shape for entry in wanted for name, shape in entry.pieces()}
        ignored = [name for name in stored if any(fnmatch.fnmatchcase(name, p) for p in family.ignored)]
        check(folder, stored, shapes, ignored)
        if config.tied_embeddings:
            _check_tied(family, stored)
        kinds = {stored[name].dtype for name in shapes}
        dtype = jnp.result_type(*(FLOATS[kind] for kind in kinds)) if dtype is None else jnp.dtype(dtype)
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        places = _places(shardings, wanted)
        return unflatten_dict(
            {entry.key.path: entry.read(stored, dtype, places[entry.key.path]) for entry in wanted}, sep="/"
        )


def write_parameters(
    folder: Path, family: Family, config: DecoderConfig, params: Params, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes model.safetensors, or shards and their index; tied embeddings are written once.

    Raises:
        ModelError: where the parameters are not those of the architecture.
    """
    flat = flatten_dict(params, sep="/")
    wanted = list(_wanted(family, config))
    if extra := flat.keys() - {entry.key.path for entry in wanted}:
        raise ModelError(f"parameter {min(extra)} is not part of the architecture: merge or remove it first")
    for entry in wanted:
        path, shape = entry.key.path, entry.tensor.shape
        if path not in flat or flat[path].shape != shape:
            found = f"has shape {flat[path].shape}" if path in flat else "is missing"
            raise ModelError(f"parameter {path} {found}: the architecture has it with shape {shape}")
    host = {entry.key.path: np.asarray(jax.device_get(flat[entry.key.path])) for entry in wanted}
    # Layer by layer, as models are run, so that a layer's tensors share a shard.
    parts: dict[str, list[tuple[_Entry, int]]] = {}
    for layer in range(config.layers):
        for entry in wanted:
            if layer < max(entry.layers, 1):
                parts.setdefault(entry.key.name.format(layer=layer), []).append((entry, layer))
    sizes = {
        name: sum(e.slots(host[e.key.path])[layer].nbytes for e, layer in pieces)
        for name, pieces in parts.items()
    }
    files = shards(sizes, shard_bytes)
    for file, names in files.items():
        tensors: dict[str, np.ndarray] = {}
        for name in names:
            for entry, layer in parts[name]:
                values = host[entry.key.path]
                if name not in tensors:
                    tensors[name] = np.empty(entry.stored_shape, values.dtype)
                entry.place(tensors[name])[...] = entry.slots(values)[layer]
        write_file(folder / file, tensors)
    finish_folder(folder, files, sum(sizes.values()))


class _Entry(NamedTuple):
    """One parameter that the architecture declares, beside its row of the table.

    Attributes:
        layers: how many checkpoint tensors are stacked in it; 0 where it is one and not stacked.
    """

    key: TensorName
    tensor: Tensor
    layers: int

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of one of the checkpoint's tensors, which may hold other parameters too."""
        shape = self.tensor.shape[1:] if self.layers else self.tensor.shape
        shape = (*shape[:-1], shape[-1] * self.key.parts)
        return shape[::-1] if self.key.transposed else shape

    def pieces(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The checkpoint's names and shapes, in the order of the layers."""
        for layer in range(self.layers or 1):
            yield self.key.name.format(layer=layer), self.stored_shape

    def slots(self, values: np.ndarray) -> np.ndarray:
        """The parameter with its layers, or the one piece that it is, on the leading axis."""
        return values if self.layers else values[None]

    def place(self, stored: np.ndarray) -> np.ndarray:
        """Where the parameter, one layer of it, stands in a checkpoint's tensor: a view of its own shape."""
        stored = stored.T if self.key.transposed else stored
        width = stored.shape[-1] // self.key.parts
        return stored[..., self.key.part * width : (self.key.part + 1) * width]

    def read(self, stored: Mapping[str, Stored], dtype: DTypeLike, sharding: Sharding | None) -> jax.Array:
        """The parameter, on its devices."""

        def part(index: Any) -> np.ndarray:
            spans = [range(size)[piece] for size, piece in zip(self.tensor.shape, index, strict=True)]
            layers = spans.pop(0) if self.layers else range(1)
            offset = self.key.part * self.tensor.shape[-1]
            slices = [slice(span.start, span.stop) for span in spans[:-1]]
            slices.append(slice(offset + spans[-1].start, offset + spans[-1].stop))
            values = np.empty((len(layers), *map(len, spans)), dtype)
            for slot, layer in zip(values, layers, strict=True):
                source = stored[self.key.name.format(layer=layer)].values
                piece = source[tuple(slices[::-1] if self.key.transposed else slices)]
                slot[...] = piece.T if self.key.transposed else piece
            return values if self.layers else values[0]

        if sharding is None:
            return jnp.asarray(part((slice(None),) * len(self.tensor.shape)))
        return jax.make_array_from_callback(self.tensor.shape, sharding, part)


def _check_tied(family: Family, stored: Mapping[str, Stored]) -> None:
    """Refuses a second copy of tied embeddings that is none: transformers would use it for the logits."""
    names = {key.path: key.name for key in family.tensors}
    table, head = (stored.get(names[path]) for path in ("embedding/table", "unembedding/kernel"))
    if table is None or head is None:
        return
    for start in range(0, table.shape[0], _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, table.shape[0]))
        if head.shape != table.shape or not np.array_equal(table.values[rows], head.values[rows]):
            raise ModelError(
                f"{head.file}: {names['unembedding/kernel']} differs from the embedding, though tie_word_embeddings is "
                "true: set it to false, or remove the tensor"
            )


def _wanted(family: Family, config: DecoderConfig) -> Iterator[_Entry]:
    declared = flatten_dict(declare(config), sep="/")
    for key in family.tensors:
        if key.path in declared:
            yield _Entry(key, declared[key.path], config.layers if "{layer}" in key.name else 0)


def _places(shardings: Any, wanted: list[_Entry]) -> Mapping[str, Sharding | None]:
    if shardings is None or isinstance(shardings, Sharding):
        return {entry.key.path: shardings for entry in wanted}
    return flatten_dict(shardings, sep="/")
