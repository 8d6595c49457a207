"""Every way in which a folder can be broken, and the line that says so."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import models
from models import ModelError
from models.folder import CONFIG
from models.stored import INDEX, WEIGHTS
from tests.models.folders import UNTIED, edit_config, edit_weights, params_of, shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.write_folder(tmp_path / "model", UNTIED, params_of(UNTIED))
    return tmp_path / "model"


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])


def reshape(tensors: dict) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((8, 6), np.float32)


def quantise(tensors: dict) -> None:
    tensors["model.norm.weight"] = np.zeros(8, np.int8)


def sharded_without_one(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def leaving_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "../model.safetensors"}}))


def index_elsewhere(folder: Path) -> None:
    shard(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][UP] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


UP = "model.layers.1.mlp.up_proj.weight"
BROKEN = {
    "no config": (without(CONFIG), r"model: no config.json: not a Hugging Face model folder"),
    "config no JSON": (lambda f: (f / CONFIG).write_text("{'a'"), r"config.json: no valid JSON \(.*line 1"),
    "config no object": (lambda f: (f / CONFIG).write_text("[]"), r"config.json: must hold a JSON object"),
    "unknown architecture": (
        lambda f: edit_config(f, model_type="gpt_neox"),
        r"config.json: unknown architecture 'gpt_neox': known are .*llama",
    ),
    "no architecture": (lambda f: edit_config(f, model_type=...), r"unknown architecture None"),
    "missing setting": (lambda f: edit_config(f, hidden_size=...), r"config.json: no hidden_size"),
    "text for a number": (
        lambda f: edit_config(f, hidden_size="8"),
        r"config.json: hidden_size must be a whole number, not '8'",
    ),
    "number for a switch": (
        lambda f: edit_config(f, attention_bias=1),
        r"attention_bias must be true or false, not 1",
    ),
    "text for a window": (
        lambda f: edit_config(f, model_type="mistral", mlp_bias=..., sliding_window="9"),
        r"sliding_window must be a whole number or null, not '9'",
    ),
    "layer types": (
        lambda f: edit_config(f, layer_types=["full_attention", "sliding_attention"]),
        r"config.json: layer_types .* is not supported",
    ),
    "rope scaling incomplete": (
        lambda f: edit_config(f, rope_scaling={"rope_type": "llama3", "factor": 2.0}),
        r"config.json: rope type 'llama3' needs a number as low_freq_factor, not None",
    ),
    "impossible sizes": (
        lambda f: edit_config(f, num_key_value_heads=3),
        r"config.json: heads 4 must be a mul",
    ),
    "activation": (lambda f: edit_config(f, hidden_act="gelu"), r"hidden_act 'gelu' is not supported"),
    "rope scaling": (
        lambda f: edit_config(f, rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        r"config.json: rope type 'yarn' is not supported",
    ),
    "another model's switch": (
        lambda f: edit_config(f, embedding_multiplier=12.0),
        r"config.json: unknown setting embedding_multiplier 12.0: remove it if llama models compute the same",
    ),
    "quantised": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"config.json: unknown setting quantization_config \{'quant_method'",
    ),
    "looks ahead": (lambda f: edit_config(f, is_causal=False), r"is_causal False is not supported"),
    "turns a part": (
        lambda f: edit_config(f, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        r"config.json: rope setting partial_rotary_factor 0.5 is not supported",
    ),
    "rope by kind of layer": (
        lambda f: edit_config(f, rope_parameters={"full_attention": {"rope_theta": 1e6}}),
        r"config.json: rope setting full_attention .* is not supported",
    ),
    "rope no object": (lambda f: edit_config(f, rope_parameters=[1]), r"rope_parameters must be an object"),
    "no weights": (without(WEIGHTS), r"model: no weights: neither model.safetensors nor"),
    "pickled weights": (pickled, r"model: no weights: .*other formats are not read"),
    "truncated weights": (cut, r"model.safetensors: truncated or no safetensors file"),
    "weights no safetensors": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x80\x04K\x01."),
        r"model.safetensors: truncated or no safetensors file",
    ),
    "missing tensor": (lambda f: edit_weights(f, lambda t: t.pop(UP)), rf"model: missing tensor {UP}"),
    "wrong shape": (
        lambda f: edit_weights(f, reshape),
        rf"model.safetensors: tensor {UP} has shape \(8, 6\), the config makes it \(6, 8\)",
    ),
    "extra tensor": (
        lambda f: edit_weights(f, lambda t: t.update({"score.weight": np.ones(1, np.float32)})),
        r"model.safetensors: unknown extra tensor score.weight",
    ),
    "extra layer": (
        lambda f: edit_config(f, num_hidden_layers=1),
        r"model.safetensors: unknown extra tensor model.layers.1",
    ),
    "whole numbers": (
        lambda f: edit_weights(f, quantise),
        r"tensor model.norm.weight is stored as I8: only floats are read",
    ),
    "missing shard": (sharded_without_one, r"model-00002-of-00002.safetensors: missing shard"),
    "index no JSON": (
        lambda f: (shard(f), (f / INDEX).write_text("{")),
        r"model.safetensors.index.json: no index of shards",
    ),
    "index wrong": (
        index_elsewhere,
        rf"model-00001-of-00002.safetensors: missing tensor {UP}, which .*index.json places there",
    ),
    "index empty": (
        lambda f: (shard(f), (f / INDEX).write_text('{"weight_map": {}}')),
        r"index.json: names no shard",
    ),
    "index outside": (leaving_index, r"index.json: shard '../model.safetensors' is no plain file name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_named_in_one_line(name: str, folder: Path) -> None:
    breaking, message = BROKEN[name]
    breaking(folder)
    with pytest.raises(ModelError, match=message) as caught:
        models.read_folder(folder)
    assert "\n" not in str(caught.value)


def test_absent_folders_are_named(folder: Path) -> None:
    missing = folder.parent / "nowhere"
    with pytest.raises(ModelError, match="nowhere: no such model folder"):
        models.read_folder(missing)
    with pytest.raises(ModelError, match="nowhere: no such tokenizer folder"):
        models.write_folder(folder, UNTIED, params_of(UNTIED), tokenizer=missing)
