"""Small random Llama models in transformers on torch, and the same weights here."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import models
from models.checkpoint import WEIGHTS
from models.llama import FAMILY

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (the parity extra)"),
]

VARIANTS = [
    {"num_key_value_heads": 1, "tie_word_embeddings": True},
    {"num_key_value_heads": 2, "tie_word_embeddings": False, "head_dim": 6},
    {"num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"num_key_value_heads": 2, "tie_word_embeddings": False, "attention_bias": True, "rms_norm_eps": 1e-3},
    {"num_key_value_heads": 4, "tie_word_embeddings": False, "rope_theta": 500.0},
]
TOKENS = np.array(jax.random.randint(jax.random.key(3), (3, 11), 0, 31))
LENGTHS = np.array([11, 7, 2])
SEGMENTS = (np.arange(11) < LENGTHS[:, None]).astype(np.int32)


def saved_by_torch(folder: Path, **variant: Any) -> Any:
    """A model whose every parameter, norms and biases too, is random, saved as transformers saves it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, max_position_embeddings=64, **variant)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    return model.eval()


def torch_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        result = model(input_ids=torch.tensor(TOKENS), attention_mask=torch.tensor(SEGMENTS))
    return result.logits.numpy()


def assert_same_logits(ours: jax.Array, theirs: np.ndarray) -> None:
    assert np.std(theirs) > 0.5
    np.testing.assert_allclose(ours[SEGMENTS > 0], theirs[SEGMENTS > 0], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: dict, tmp_path: Path) -> None:
    model = saved_by_torch(tmp_path, **variant)
    config, params = models.read_folder(tmp_path)
    assert_same_logits(models.logits(params, TOKENS, SEGMENTS, config), torch_logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: dict, tmp_path: Path) -> None:
    import torch

    model = saved_by_torch(tmp_path, **variant)
    config, params = models.read_folder(tmp_path)
    labels = torch.tensor(np.where(SEGMENTS > 0, TOKENS, -100), dtype=torch.int64)
    model(
        input_ids=torch.tensor(TOKENS), attention_mask=torch.tensor(SEGMENTS), labels=labels
    ).loss.backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        batch = {"tokens": jnp.asarray(TOKENS), "segments": jnp.asarray(SEGMENTS)}
        loss = models.token_scores(params, batch, config).loss
        return jnp.sum(jnp.where(SEGMENTS > 0, loss, 0.0)) / np.sum(LENGTHS - 1)

    ours = flatten_dict(gradient(params), sep="/")
    compared = set()
    for entry in FAMILY.tensors:
        if entry.path not in ours:
            continue
        stacked = "{layer}" in entry.name
        for layer in range(config.layers if stacked else 1):
            name = entry.name.format(layer=layer)
            value = np.asarray(ours[entry.path][layer] if stacked else ours[entry.path])
            error = np.linalg.norm((value.T if entry.transposed else value) - expected[name])
            # The gradient of a key bias is nearly nothing without a rotation: the floor is float32 noise.
            assert error <= 1e-3 * np.linalg.norm(expected[name]) + 1e-7, name
            compared.add(name)
    assert compared == set(expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_what_was_written(variant: dict, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    saved_by_torch(tmp_path / "theirs", **variant)
    config, params = models.read_folder(tmp_path / "theirs")
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.sin(100 * x), params)
    for name, source in (("fresh", None), ("copied", tmp_path / "theirs")):
        models.write_folder(tmp_path / name, config, moved, source=source)
        assert [file.name for file in (tmp_path / name).glob("*.safetensors")] == [WEIGHTS]
        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert_same_logits(models.logits(moved, TOKENS, SEGMENTS, config), torch_logits(loaded.eval()))


def test_shards_that_transformers_wrote(tmp_path: Path) -> None:
    model = saved_by_torch(tmp_path, **VARIANTS[1])
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    config, params = models.read_folder(tmp_path / "sharded")
    assert_same_logits(models.logits(params, TOKENS, SEGMENTS, config), torch_logits(model))
