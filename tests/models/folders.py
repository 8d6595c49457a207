"""Small models of every family, and ways to change their folders."""

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
from safetensors.numpy import load_file, save_file

import models
from models import DecoderConfig, RopeScaling
from models.folder import CONFIG
from models.stored import WEIGHTS

TIED = DecoderConfig(vocab_size=13, width=8, layers=2, heads=4, kv_heads=2, mlp_width=6, norm_epsilon=1e-6)
UNTIED = dataclasses.replace(
    TIED,
    tied_embeddings=False,
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    kv_heads=1,
    head_dim=4,
    rope_theta=5e5,
)


FAMILIES = {
    "llama": UNTIED,
    "mistral": dataclasses.replace(TIED, window=5, max_positions=64),
    "qwen2": dataclasses.replace(TIED, attention_bias=True, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64)),
    "qwen3": dataclasses.replace(TIED, qk_norm=True, head_dim=6),
    "gpt2": dataclasses.replace(
        TIED,
        kv_heads=4,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions="learned",
        norm="layer",
        mlp="plain",
    ),
}


@cache
def params_of(config: DecoderConfig) -> dict:
    return models.init(config, jax.random.key(0))


def edit_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / CONFIG).read_text()) | changes
    kept = {key: value for key, value in raw.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(kept))


def edit_weights(folder: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def shard(folder: Path) -> None:
    config, params = models.read_folder(folder)
    models.write_folder(folder, config, params, source=folder, shard_bytes=3000)
    assert len(list(folder.glob("model-*"))) == 2
