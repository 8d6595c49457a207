"""Small random models of every family in transformers on torch, and the same weights here."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import models
from models.checkpoint import write_parameters
from models.folder import FAMILIES
from models.stored import WEIGHTS

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (the parity extra)"),
]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
    "rope_theta": 50.0,
}
SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 64}
GPT2_SIZES = {"vocab_size": 31, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}
VARIANTS = {
    "llama, 1 head tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, 2 heads wide": ("llama", {"num_key_value_heads": 2, "head_dim": 6}),
    "llama, 4 heads biases": (
        "llama",
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, epsilon": ("llama", {"num_key_value_heads": 2, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "llama, base": ("llama", {"num_key_value_heads": 4, "rope_theta": 500.0}),
    "llama 3": ("llama", {"num_key_value_heads": 2, "head_dim": 8, "rope_parameters": LLAMA3}),
    "mistral, window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 3}),
    "mistral, no window": ("mistral", {"num_key_value_heads": 4, "sliding_window": None, "head_dim": 6}),
    "qwen 2, 1 head tied": ("qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen 2, 4 heads": ("qwen2", {"num_key_value_heads": 4}),
    "qwen 3, 1 head tied": (
        "qwen3",
        {"num_key_value_heads": 1, "head_dim": 6, "tie_word_embeddings": True},
    ),
    "qwen 3, 2 heads biases": ("qwen3", {"num_key_value_heads": 2, "head_dim": 4, "attention_bias": True}),
    "gpt-2": ("gpt2", {}),
    "gpt-2, untied narrow": ("gpt2", {"tie_word_embeddings": False, "n_inner": 24}),
}
TOKENS = np.array(jax.random.randint(jax.random.key(3), (3, 11), 0, 31))
LENGTHS = np.array([11, 7, 2])
SEGMENTS = (np.arange(11) < LENGTHS[:, None]).astype(np.int32)
BATCH = {"tokens": jnp.asarray(TOKENS), "segments": jnp.asarray(SEGMENTS)}


def saved_by_torch(folder: Path, name: str, spread: float = 0.3, **saving: Any) -> Any:
    """A model whose every parameter, norms and biases too, is random, saved as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    family, changes = VARIANTS[name]
    sizes = GPT2_SIZES if family == "gpt2" else SIZES
    raw = AutoConfig.for_model(family, **sizes, attn_implementation="eager", **changes)
    model = AutoModelForCausalLM.from_config(raw)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in path or "ln_" in path else 0.0, spread)
    model.save_pretrained(folder, **saving)
    return model.eval()


def torch_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        result = model(input_ids=torch.tensor(TOKENS), attention_mask=torch.tensor(SEGMENTS))
    return result.logits.float().numpy()


def assert_same_logits(ours: jax.Array, theirs: np.ndarray) -> None:
    assert np.std(theirs) > 0.5
    np.testing.assert_allclose(ours[SEGMENTS > 0], theirs[SEGMENTS > 0], atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_gradients(name: str, tmp_path: Path) -> None:
    import torch

    model = saved_by_torch(tmp_path, name)
    config, params = models.read_folder(tmp_path)
    assert_same_logits(models.logits(params, TOKENS, SEGMENTS, config), torch_logits(model))

    labels = torch.tensor(np.where(SEGMENTS > 0, TOKENS, -100), dtype=torch.int64)
    model(
        input_ids=torch.tensor(TOKENS), attention_mask=torch.tensor(SEGMENTS), labels=labels
    ).loss.backward()

    @jax.jit
    @jax.grad
    def gradient(params: dict) -> jax.Array:
        loss = models.token_scores(params, BATCH, config).loss
        return jnp.sum(jnp.where(SEGMENTS > 0, loss, 0.0)) / np.sum(LENGTHS - 1)

    # Written as a model is, so that each stands under the name and in the layout that torch has.
    write_parameters(tmp_path, FAMILIES[VARIANTS[name][0]], config, gradient(params))
    ours = load_file(tmp_path / WEIGHTS)
    assert ours.keys() == dict(model.named_parameters()).keys()
    for path, parameter in model.named_parameters():
        expected = parameter.grad.numpy()
        # The gradient of a key bias is nearly nothing without a rotation: the floor is float32 noise.
        error = np.linalg.norm(ours[path] - expected)
        assert error <= 1e-3 * np.linalg.norm(expected) + 1e-6, path


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_loads_what_was_written(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    saved_by_torch(tmp_path / "theirs", name)
    config, params = models.read_folder(tmp_path / "theirs")
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.sin(100 * x), params)
    for copy, source in (("fresh", None), ("copied", tmp_path / "theirs")):
        models.write_folder(tmp_path / copy, config, moved, source=source)
        assert [file.name for file in (tmp_path / copy).glob("*.safetensors")] == [WEIGHTS]
        loaded, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / copy, output_loading_info=True, attn_implementation="eager"
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert_same_logits(models.logits(moved, TOKENS, SEGMENTS, config), torch_logits(loaded.eval()))


@pytest.mark.parametrize(
    "name", ["llama, 1 head tied", "llama 3", "mistral, window", "qwen 3, 1 head tied", "gpt-2"]
)
def test_bfloat16_logits(name: str, tmp_path: Path) -> None:
    import torch

    model = saved_by_torch(tmp_path, name, spread=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(tmp_path)
    config, params = models.read_folder(tmp_path, jnp.bfloat16)
    ours, theirs = models.logits(params, TOKENS, SEGMENTS, config), torch_logits(model)
    assert ours.dtype == jnp.float32
    assert np.std(theirs) > 0.2
    np.testing.assert_allclose(ours[SEGMENTS > 0], theirs[SEGMENTS > 0], atol=2e-2)


@pytest.mark.parametrize("name", ["llama, 2 heads wide", "gpt-2, untied narrow"])
def test_shards_of_transformers_and_ours(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = saved_by_torch(tmp_path, name, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config, params = models.read_folder(tmp_path)
    ours = models.logits(params, TOKENS, SEGMENTS, config)
    assert_same_logits(ours, torch_logits(model))
    models.write_folder(tmp_path / "ours", config, params, shard_bytes=6000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert_same_logits(ours, torch_logits(loaded.eval()))


def test_gpt2_written_without_its_head(tmp_path: Path) -> None:
    model = saved_by_torch(tmp_path / "whole", "gpt-2")
    model.transformer.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / WEIGHTS)
    config, params = models.read_folder(tmp_path)
    assert_same_logits(models.logits(params, TOKENS, SEGMENTS, config), torch_logits(model))
