"""Adapters that PEFT wrote, here, and ours, there."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import models
from models import LoraConfig, lora

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft (the parity extra)"),
    # PEFT warns of Conv1D layers that it then handles, and reads what transformers is about to rename.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TOKENS = np.array(jax.random.randint(jax.random.key(3), (3, 9), 0, 31))
FAMILIES = {
    "llama": (
        {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_key_value_heads": 2},
        ["q_proj", "v_proj", "down_proj"],
        ("query", "value", "down"),
        r"layers\.[1-9]\.self_attn\.q_proj",
    ),
    "gpt2": (
        {"n_embd": 16, "n_layer": 2, "n_positions": 64},
        ["c_attn", "mlp.c_proj"],
        ("query", "key", "down"),
        r"h\.[1-9]\.attn\.c_attn",
    ),
}


def base_model(family: str, folder: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    heads = {"n_head": 4} if family == "gpt2" else {"num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, vocab_size=31, **heads, **FAMILIES[family][0])
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    return model.eval()


def torch_logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(TOKENS)).logits.numpy()


@pytest.mark.parametrize("pattern", ["none", "modules", "layers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_peft_give_the_same_logits(family: str, pattern: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    targets = FAMILIES[family][1]
    layers = FAMILIES[family][3]
    patterns = {
        "none": {},
        "modules": {"rank_pattern": {targets[0]: 5}, "alpha_pattern": {targets[-1]: 3}},
        "layers": {"rank_pattern": {layers: 5}, "alpha_pattern": {layers: 3, targets[-1]: 2}},
    }[pattern]
    stabilised = pattern == "modules"
    settings = PeftConfig(r=3, lora_alpha=7, target_modules=targets, use_rslora=stabilised, **patterns)
    model = get_peft_model(base_model(family, tmp_path / "base"), settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(tmp_path / "adapter")
    config, params = models.read_folder(tmp_path / "base")
    ours, adapter = models.read_adapter(tmp_path / "adapter", config)
    expected = torch_logits(model.eval())
    segments = np.ones_like(TOKENS)
    plain = models.logits(params, TOKENS, segments, config)
    assert np.abs(plain - expected).max() > 0.1
    for view in (lora.attach(params, adapter, ours), lora.merge(params, adapter, ours)):
        np.testing.assert_allclose(models.logits(view, TOKENS, segments, config), expected, atol=1e-4)


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_was_written(family: str, stabilised: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    model = base_model(family, tmp_path / "base")
    config, params = models.read_folder(tmp_path / "base")
    settings = LoraConfig(3, 7.0, FAMILIES[family][2], stabilised)
    keys = iter(jax.random.split(jax.random.key(5), 100))
    adapter = jax.tree.map(
        lambda x: 0.3 * jax.random.normal(next(keys), x.shape), lora.init(config, settings, jax.random.key(1))
    )
    models.write_adapter(tmp_path / "adapter", config, settings, adapter)
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    ours = models.logits(lora.attach(params, adapter, settings), TOKENS, np.ones_like(TOKENS), config)
    np.testing.assert_allclose(ours, torch_logits(loaded), atol=1e-4)
