"""Snapshots: a trained weight network as a folder that weights other runs and filters files.

    snapshot.json          what the network is, at which stage it was taken, what it was trained on
    network.safetensors    its parameters
    tokenizer/             the tokenizer whose tokens it reads

A run keeps one for each stage, in `snapshots/stage-1`, `snapshots/stage-2` and so on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from bilevel.core.problem import NO_SIZES
from bilevel.core.tree import PyTree
from bilevel.data import Tokenizer, load_tokenizer
from bilevel.errors import InputError
from bilevel.storage.plain import Mismatch, from_plain, to_plain
from bilevel.weighting.network_description import NetworkDescription

FOLDER = "snapshots"
LAST = "last"
"""A folder name that stands for the last stage's snapshot of a run: RUN/last."""

_DESCRIPTION = "snapshot.json"
_PARAMETERS = "network.safetensors"
_TOKENIZER = "tokenizer"
_PROBE = "Once upon a time, 12 + 30 = 42.\n\tDéjà vu: <x> & y! ¿Qué?"


@dataclass(frozen=True)
class SnapshotInfo:
    """What `snapshot.json` says.

    Attributes:
        network: the network.
        vocab_size: tokens that it knows.
        tokenizer: fingerprint of the tokenizer.
        template: wording around the rows that it was trained on; "" for plain text.
        max_length: most tokens of these rows.
        batch_rows: rows of a batch in training, which a network with attention across rows has learned to compare.
        stage: after which stage it was taken, from 1.
        stages: of how many.
        warmup_stages: the first of them that trained at uniform weights.
        step: solver steps that its run had taken.
        trained_on: what its run was about: files, rows, model, seed.
    """

    network: NetworkDescription
    vocab_size: int
    tokenizer: str
    template: str = ""
    max_length: int = 128
    batch_rows: int = 32
    stage: int = 1
    stages: int = 1
    warmup_stages: int = 0
    step: int = 0
    trained_on: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """A weight network that is trained.

    Attributes:
        info: what it is.
        parameters: the network's, NumPy arrays.
        folder: where it was read from.
    """

    info: SnapshotInfo
    parameters: PyTree
    folder: Path

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the snapshot brings along.

        Raises:
            InputError: it is missing or broken, or not the one that the network was trained with.
        """
        tokenizer = load_tokenizer(self.folder / _TOKENIZER)
        check_tokenizer(self, tokenizer)
        return tokenizer


def write_snapshot(folder: Path, info: SnapshotInfo, parameters: PyTree, tokenizer: Tokenizer) -> None:
    """Writes a snapshot, in place of one that stands there.

    The description is written last: a folder with one is whole.

    Args:
        folder: the snapshot's own folder; made with its parents.
        info: what it is.
        parameters: the network's.
        tokenizer: whose tokens it reads.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {
        name: np.ascontiguousarray(value) for name, value in _named(jax.device_get(parameters)).items()
    }
    save_file(tensors, folder / _PARAMETERS)
    tokenizer.save_pretrained(folder / _TOKENIZER)
    text = json.dumps(to_plain(info, SnapshotInfo), indent=1, ensure_ascii=False)
    (folder / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def read_snapshots(path: Path) -> tuple[Snapshot, ...]:
    """Reads the snapshots that a path stands for.

    Args:
        path: a snapshot's folder; the folder of a run, which stands for the snapshots of all its stages, first to last;
            or RUN/last.

    Returns:
        At least one snapshot; several are of one network and one tokenizer.

    Raises:
        InputError: there is none, or one that is incomplete, broken or not like the others.
    """
    if (path / _DESCRIPTION).is_file():
        return (_read(path),)
    if path.name == LAST and not path.exists():
        return read_snapshots(path.parent)[-1:]
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; name a run with snapshots, or a snapshot's own folder")
    inside = path if path.name == FOLDER else path / FOLDER
    found = sorted(
        (_read(folder.parent) for folder in inside.glob(f"*/{_DESCRIPTION}")), key=lambda s: s.info.stage
    )
    if not found:
        what = f"no {_DESCRIPTION} here" if (path / _PARAMETERS).exists() else "no snapshot here"
        raise InputError(
            f"{path}: {what}; name the folder of a run of DWM, one of its {FOLDER}/stage-N, or RUN/{LAST}"
        )
    for snapshot in found[1:]:
        for name in ("network", "vocab_size", "tokenizer"):
            if getattr(snapshot.info, name) != getattr(found[0].info, name):
                raise InputError(
                    f"{snapshot.folder}: has another {name} than {found[0].folder}; they are of different runs: name "
                    "the folder of one"
                )
    return tuple(found)


def check_tokenizer(snapshot: Snapshot, tokenizer: Tokenizer) -> None:
    """Checks that a tokenizer gives a network the tokens that it was trained on.

    Raises:
        InputError: it does not.
    """
    if tokenizer_fingerprint(tokenizer) != snapshot.info.tokenizer:
        raise InputError(
            f"{snapshot.folder}: its network was trained with another tokenizer than this run's; give the run that one "
            f"(--tokenizer {snapshot.folder / _TOKENIZER}), or train a network with yours"
        )


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """A fingerprint of what a tokenizer does: its vocabulary, its special tokens, how it cuts a text.

    Unlike its files, this does not change with the library's version.
    """
    said = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id],
        "probe": tokenizer(_PROBE, add_special_tokens=False)["input_ids"],
    }
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:16]


def _named(parameters: PyTree) -> dict[str, Any]:
    """Arrays by their path, as in `layers/attention/query/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _read(folder: Path) -> Snapshot:
    path = folder / _DESCRIPTION
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        info = from_plain(raw, SnapshotInfo)
        if not isinstance(info, SnapshotInfo):
            raise Mismatch("", f"cannot be {raw!r}")
        init = info.network.weighting(info.vocab_size).init
        expected, _ = jax.eval_shape(lambda key: init(key, NO_SIZES), jax.random.key(0))
    except (ValueError, Mismatch) as error:
        detail = " ".join(str(error).split())
        raise InputError(
            f"{path}: no description of a snapshot ({detail}); write the snapshot again"
        ) from error
    file = folder / _PARAMETERS
    try:
        tensors = load_file(file)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; copy the snapshot's folder again") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file}: truncated or no safetensors file ({error}); copy the snapshot's folder again"
        ) from error
    _check_tensors(file, tensors, _named(expected))
    leaves = [tensors[name] for name in _named(expected)]
    return Snapshot(info, jax.tree.unflatten(jax.tree.structure(expected), leaves), folder)


def _check_tensors(file: Path, tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> None:
    remedy = f"{_DESCRIPTION} and {_PARAMETERS} are of different networks: copy both from one snapshot"
    for name, tensor in expected.items():
        if name not in tensors:
            raise InputError(f"{file}: tensor {name} is missing; {remedy}")
        if tensors[name].shape != tensor.shape:
            raise InputError(
                f"{file}: tensor {name} has shape {tensors[name].shape}, the network's is {tensor.shape}; {remedy}"
            )
        if not np.all(np.isfinite(tensors[name].astype(np.float32))):
            raise InputError(
                f"{file}: tensor {name} holds numbers that are not finite; take an earlier snapshot"
            )
    surplus: Sequence[str] = [name for name in tensors if name not in expected]
    if surplus:
        raise InputError(f"{file}: tensor {surplus[0]} belongs to no network like this; {remedy}")
