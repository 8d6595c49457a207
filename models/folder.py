"""Hugging Face model folders, in and out. No pickle is loaded, and no code from a folder is run."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding
from jaxtyping import DTypeLike, PyTree

from models import gpt2, llama, mistral, qwen
from models.checkpoint import read_parameters, write_parameters
from models.config import DecoderConfig
from models.errors import ModelError
from models.family import Family, config_from_raw, family_of, raw_from_config
from models.hub import local_folder
from models.parameters import Params
from models.stored import SHARD_BYTES
from models.tokenizer import FILES, copy_files, folder_of, write_tokenizer

CONFIG = "config.json"
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (llama.FAMILY, mistral.FAMILY, qwen.QWEN2, qwen.QWEN3, gpt2.FAMILY)
}
"""By `model_type`. An architecture that several can hold is written as the first."""
_GENERATION = "generation_config.json"
_TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
"""Terms that go with a model wherever it goes."""


def read_config(path: str | os.PathLike[str]) -> DecoderConfig:
    """Reads the architecture alone, for checks that should come before weights are read.

    Args:
        path: a Hugging Face folder, or "owner/name" on the hub.

    Returns:
        The architecture.

    Raises:
        ModelError: as `read_folder`, for the folder and its `config.json`.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> write_folder("small_llama", config, init(config, jax.random.key(0)))
        >>> read_config("small_llama").width
        8
    """
    return _read_config(local_folder(path, (CONFIG,)))[2]


def read_folder(
    path: str | os.PathLike[str],
    dtype: DTypeLike | None = None,
    shardings: PyTree[Sharding] | None = None,
) -> tuple[DecoderConfig, Params]:
    """Reads a model.

    Args:
        path: a Hugging Face folder: config.json and model.safetensors, or shards with their index; or
            "owner/name" on the hub.
        dtype: type of the parameters; by default the type in which they are stored.
        shardings: where each parameter goes, as from `models.shardings`; a process reads only what its devices
            hold. By default all goes to the default device.

    Returns:
        The architecture and the parameters.

    Raises:
        ModelError: for anything that is absent, broken or unknown; one line that names the file and the tensor.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> write_folder("small_llama", config, init(config, jax.random.key(0)))
        >>> config, params = read_folder("small_llama", dtype="bfloat16")
        >>> str(params["final_norm"]["scale"].dtype)
        'bfloat16'
    """
    folder = local_folder(path)
    _, family, config = _read_config(folder)
    return config, read_parameters(folder, family, config, dtype, shardings)


def write_folder(
    path: str | os.PathLike[str],
    config: DecoderConfig,
    params: Params,
    *,
    source: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads.

    Args:
        path: where to; made where it is absent, its files of the same names replaced.
        config: the architecture.
        params: the parameters, in the type in which they are to be stored.
        source: the folder or hub name that the model was read from: its config.json is copied and only what differs is
            changed, and its generation_config.json, tokenizer files and terms of use are copied as they are.
        tokenizer: a tokenizer folder, whose files are copied, or a transformers tokenizer: of one that was read from a
            folder that folder's files are copied, another saves itself. By default the source's.
        shard_bytes: weights larger than this are written as shards with an index.

    Raises:
        ModelError: where parameters and architecture disagree, or a folder that is named is not there.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> write_folder("small_llama", config, init(config, jax.random.key(0)))
        >>> sorted(path.name for path in Path("small_llama").iterdir())
        ['config.json', 'model.safetensors']
    """
    target = Path(path)
    if source is None:
        raw, family = None, family_of(FAMILIES.values(), config)
    else:
        source = local_folder(source)
        raw, family, _ = _read_config(source)
    text = raw_from_config(family, config, raw)
    text["torch_dtype" if "torch_dtype" in text else "dtype"] = str(jax.tree.leaves(params)[0].dtype)
    target.mkdir(parents=True, exist_ok=True)
    write_parameters(target, family, config, params, shard_bytes)
    if source is not None:
        copy_files(source, target, (_GENERATION, *_TERMS))
    if tokenizer is None:
        if source is not None:
            copy_files(source, target, FILES)
    else:
        written, folder = _write_tokenizer(tokenizer, target)
        # A tokenizer of the source's own changes nothing of what the source says about tokens.
        if source is None or folder is None or folder.resolve() != source.resolve():
            ids = _special_tokens(written)
            text |= _differing(text, ids) if source is not None else ids
            _mend_generation(target / _GENERATION, ids)
    (target / CONFIG).write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


def _read_config(folder: Path) -> tuple[dict[str, Any], Family, DecoderConfig]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder}: no {CONFIG}: not a Hugging Face model folder")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    family = FAMILIES.get(str(raw.get("model_type")))
    if family is None:
        raise ModelError(
            f"{path}: unknown architecture {raw.get('model_type')!r}: known are {', '.join(FAMILIES)}"
        )
    try:
        return raw, family, config_from_raw(family, raw)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _write_tokenizer(tokenizer: Any, target: Path) -> tuple[Any, Path | None]:
    """Copies a tokenizer folder or writes a tokenizer; returns it, and the folder whose files now stand there."""
    if not isinstance(tokenizer, str | os.PathLike):
        write_tokenizer(tokenizer, target)
        return tokenizer, folder_of(tokenizer)
    if not Path(tokenizer).is_dir():
        raise ModelError(f"{tokenizer}: no such tokenizer folder")
    copy_files(Path(tokenizer), target, FILES)
    # Imported here: transformers takes a second, and only this line needs it.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(target, trust_remote_code=False), Path(tokenizer)


def _special_tokens(tokenizer: Any) -> dict[str, int | None]:
    kinds = ((kind, getattr(tokenizer, f"{kind}_token_id")) for kind in ("bos", "eos", "pad"))
    return {f"{kind}_token_id": token for kind, token in kinds}


def _differing(text: Mapping[str, Any], ids: Mapping[str, int | None]) -> dict[str, int | None]:
    """Those ids that a configuration does not have already, alone or in a list of several."""
    found = {key: text[key] if isinstance(text.get(key), list) else [text.get(key)] for key in ids}
    return {key: token for key, token in ids.items() if token not in found[key]}


def _mend_generation(path: Path, ids: Mapping[str, int | None]) -> None:
    """Brings a model's generation settings in line with another tokenizer, where they name tokens."""
    if not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    changes = {key: token for key, token in _differing(settings, ids).items() if key in settings}
    if changes:
        path.write_text(json.dumps(settings | changes, indent=2) + "\n", encoding="utf-8")
