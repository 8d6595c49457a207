"""From a folder, a name on the hub or an architecture to a model that can be trained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models import lora as adapters
from models.adapter_folder import find_targets, read_adapter
from models.attention import PATHS
from models.attention.fused import has_kernel
from models.config import DecoderConfig
from models.decoder import REMAT, init
from models.errors import ModelError
from models.folder import read_config, read_folder
from models.hub import PATTERNS, local_folder
from models.language_model import LanguageModel
from models.lora import LoraConfig
from models.parameters import Params, abstract_values
from models.precision import cast
from models.sharding import shardings
from models.stored import open_folder
from models.tokenizer import read_tokenizer

DTYPES = ("float32", "bfloat16")


class Found(NamedTuple):
    """A model that is there, before its weights are touched.

    Attributes:
        config: the architecture.
        folder: where its files are, of a hub model all but the weights; None for random weights.
        name: what it goes by: the folder's whole path, or the name on the hub.
    """

    config: DecoderConfig
    folder: Path | None = None
    name: str = ""


Source = str | os.PathLike[str] | DecoderConfig | Found
"""A Hugging Face folder, "owner/name" on the hub, an architecture for random weights, or what `find` gave."""


def find(source: Source, *, lora: LoraConfig | str | Path | None = None, merge: bool = False) -> Found:
    """Looks at a model, and at the adapter that is to be trained beside it, without reading weights.

    Missing and broken files are found in a moment; `load` takes the result.

    Args:
        source: as for `load`.
        lora: as for `load`.
        merge: as for `load`.

    Raises:
        ModelError: no such model, one that cannot be read, or an adapter that does not fit it.

    Examples:
        >>> from models import LoraConfig, small
        >>> find(small(256), lora=LoraConfig(rank=4), merge=True).config.vocab_size
        256
    """
    found = _found(source)
    if lora is not None:
        begin_adapter(found, lora, merge=merge)
    return found


def load(
    source: Source,
    *,
    lora: LoraConfig | str | Path | None = None,
    merge: bool = False,
    dtype: str = "float32",
    attention: str = "auto",
    remat: str = "dots",
    tokenizer: Any = None,
    seed: int = 0,
    mesh: Mesh | None = None,
    shard_rules: Mapping[str, str] | None = None,
) -> LanguageModel:
    """Reads or draws a model that can be trained.

    Args:
        source: a Hugging Face folder, "owner/name" on the hub, an architecture for random weights, or from `find`.
        lora: trains an adapter alone: a fresh one, whose targets may go by the checkpoint's names (q_proj), ours
            (query) or `all`; or a PEFT adapter folder to go on from. By default all parameters are trained.
        merge: whether the trained adapter is written into the parameters.
        dtype: what the products are computed in, and what frozen parameters are held in: float32 or bfloat16.
        attention: `auto`, `exact`, `blockwise` or `fused`, see `LanguageModel`.
        remat: what the backward pass keeps of a layer: `none` keeps everything, `dots` the outputs of its linear maps,
            `full` its input alone.
        tokenizer: a transformers tokenizer or its folder; by default the model folder's, if there is one.
        seed: of random weights and of a fresh adapter.
        mesh: the devices that share a batch. Frozen parameters are put on each of them.
        shard_rules: splits parameters over the mesh: mesh axis by logical axis, as for `models.shardings`.

    Raises:
        ModelError: no such model, one that cannot be read, or settings that do not fit it, each other or the device.

    Examples:
        >>> from models import LoraConfig, small
        >>> model = load(small(256, 16), lora=LoraConfig(rank=2), merge=True)
        >>> model.described
        'an adapter of rank 2 on query, value: 112 parameters beside 17,200 frozen ones'
    """
    found = _found(source)
    _check(found.config, dtype, attention, remat, mesh, shard_rules)
    begun = None if lora is None else begin_adapter(found, lora, seed=seed, merge=merge)
    if merge and begun is None:
        raise ModelError("merge is for adapters: give lora, or leave merge out")
    places: Any = None
    if shard_rules is not None:
        assert mesh is not None  # `_check` has asked
        places = shardings(found.config, mesh, shard_rules)
    elif mesh is not None and begun is not None:
        # Once for the whole run: what is closed over would otherwise travel to the other devices at every step.
        places = NamedSharding(mesh, PartitionSpec())
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = _tokenizer_in(tokenizer)
    folder, held = None, "float32" if begun is None else dtype
    if found.folder is None:
        params = cast(init(found.config, jax.random.key(seed)), held)
        params = params if places is None else jax.device_put(params, places)
    else:
        # Of a model on the hub the weights come now.
        folder = found.folder if Path(found.name).is_dir() else local_folder(found.name)
        params = read_folder(folder, dtype=held, shardings=places)[1]
    return LanguageModel(
        found.config,
        params if begun is None else begun[1],
        base=None if begun is None else params,
        adapter=None if begun is None else begun[0],
        folder=folder,
        name=found.name,
        merge=merge,
        dtype=dtype,
        attention=attention,
        remat=remat,
        devices=None if mesh is None else mesh.size,
        given_tokenizer=tokenizer,
    )


def begin_adapter(
    found: Found, lora: LoraConfig | str | Path, *, seed: int = 0, merge: bool = False
) -> tuple[LoraConfig, Params]:
    """Settings, with targets by our names, and parameters that an adapter begins with.

    Args:
        found: the model.
        lora: settings of a fresh adapter, or a PEFT adapter folder.
        seed: of a fresh one.
        merge: whether it is to be merged when it is written.

    Raises:
        ModelError: targets that match nothing, an adapter folder that cannot be read, or an adapter that could not be
            written again.
    """
    config = found.config
    if found.folder is None and not merge:
        raise ModelError("an adapter beside random weights is of no use without them: set merge")
    if isinstance(lora, LoraConfig):
        settings = replace(lora, targets=find_targets(config, lora.targets))
        return settings, adapters.init(config, settings, jax.random.fold_in(jax.random.key(seed), 1))
    settings, adapter = read_adapter(lora, config, "float32")
    declared = abstract_values(adapters.declare(config, settings))
    if not merge and jax.tree.map(jax.numpy.shape, adapter) != jax.tree.map(lambda x: x.shape, declared):
        raise ModelError(
            f"{lora}: an adapter of several ranks cannot be written again, only merged: set merge"
        )
    return settings, adapter


def _found(source: Source) -> Found:
    if isinstance(source, Found):
        return source
    if isinstance(source, DecoderConfig):
        return Found(source)
    # Of a model on the hub everything but the weights, which come when everything else is known to be good.
    folder = local_folder(source, [p for p in PATTERNS if "safetensors" not in p])
    config = read_config(folder)
    if not Path(source).is_dir():
        return Found(config, folder, str(source))
    with ExitStack() as stack:
        open_folder(folder, stack)  # headers alone
    return Found(config, folder, str(folder.resolve()))


def _check(
    config: DecoderConfig,
    dtype: str,
    attention: str,
    remat: str,
    mesh: Mesh | None,
    shard_rules: Mapping[str, str] | None,
) -> None:
    for name, given, known in (
        ("dtype", dtype, DTYPES),
        ("attention", attention, ("auto", *PATHS)),
        ("remat", remat, tuple(REMAT)),
    ):
        if given not in known:
            raise ModelError(f"unknown {name} {given!r}: choose one of {', '.join(known)}")
    if shard_rules is not None and mesh is None:
        raise ModelError("shard_rules split parameters over a mesh: give mesh, too")
    devices = jax.device_count() if mesh is None else mesh.size
    if attention == "fused" and not has_kernel(config.head_dim, dtype, devices):
        raise ModelError(
            f"attention fused: this device has no kernel for heads of {config.head_dim} in {dtype} on {devices} "
            "devices: take auto"
        )


def _tokenizer_in(folder: str | os.PathLike[str]) -> Any:
    found = read_tokenizer(folder)
    if found is None:
        raise ModelError(
            f"{folder}: there is no tokenizer.json; save a fast tokenizer there with save_pretrained"
        )
    return found
