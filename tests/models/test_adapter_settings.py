"""Settings of PEFT's adapters: patterns by layer, and keys that change nothing."""

import json
from pathlib import Path

import chex
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from models import LoraConfig
from models.adapter_folder import CONFIG, WEIGHTS
from tests.models.test_lora import LLAMA, trained


def test_settings_that_change_nothing_are_read_over(tmp_path: Path) -> None:
    settings = LoraConfig(2, 6.0)
    models.write_adapter(tmp_path, LLAMA, settings, trained(LLAMA, settings))
    raw = json.loads((tmp_path / CONFIG).read_text())
    idle = {
        "init_lora_weights": "gaussian",
        "lora_dropout": 0.1,
        "revision": "main",
        "loftq_config": {"loftq_bits": 4},
        "megatron_core": "megatron.core",
        "use_something_new": False,
        "target_modules": r".*\.self_attn\.[qv]_proj",
        "exclude_modules": ["lm_head"],
    }
    (tmp_path / CONFIG).write_text(json.dumps(raw | idle))
    read_settings, read = models.read_adapter(tmp_path, LLAMA)
    assert read_settings == settings
    chex.assert_trees_all_equal(read, trained(LLAMA, settings))


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize(
    ("key", "adapted"),
    [
        ("q_proj", {(0, "query"), (1, "query")}),
        ("layers.1.self_attn.q_proj", {(1, "query")}),
        (r"layers\.[12]\..*_proj", {(1, "query"), (1, "value")}),
        ("1.self_attn.q_proj", {(1, "query")}),
        ("_proj", set()),  # patterns match from a dot on
    ],
)
def test_patterns_are_matched_against_the_name_in_each_layer(
    key: str, adapted: set, stabilised: bool, tmp_path: Path
) -> None:
    settings = LoraConfig(2, 6.0, rank_stabilised=stabilised)
    adapter = trained(LLAMA, settings)
    models.write_adapter(tmp_path, LLAMA, settings, adapter)
    raw = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(raw | {"alpha_pattern": {key: 15.0}}))
    read_settings, read = models.read_adapter(tmp_path, LLAMA)
    for target in ("query", "value"):
        factors = (tree["layers"]["attention"][target]["lora_b"] for tree in (read, adapter))
        for layer, (found, plain) in enumerate(zip(*factors, strict=True)):
            expected = 2.5 * plain if (layer, target) in adapted else plain
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert read_settings == settings


def test_layers_of_lower_rank_are_filled_up_with_zeros(tmp_path: Path) -> None:
    settings = LoraConfig(3, 6.0, ("query",))
    adapter = trained(LLAMA, settings)
    models.write_adapter(tmp_path, LLAMA, settings, adapter)
    raw, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    tensors[f"{name}.lora_A.weight"] = tensors[f"{name}.lora_A.weight"][:2]
    tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(tensors[f"{name}.lora_B.weight"][:, :2])
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(raw | {"rank_pattern": {"layers.1.self_attn.q_proj": 2}}))
    query = models.read_adapter(tmp_path, LLAMA)[1]["layers"]["attention"]["query"]
    product = query["lora_a"] @ query["lora_b"]
    whole = adapter["layers"]["attention"]["query"]
    np.testing.assert_allclose(product[0], whole["lora_a"][0] @ whole["lora_b"][0], rtol=1e-5, atol=1e-7)
    # alpha / rank is larger there.
    cut = whole["lora_a"][1, :, :2] @ whole["lora_b"][1, :2]
    np.testing.assert_allclose(product[1], 1.5 * cut, rtol=1e-5)
    assert models.read_adapter(tmp_path, LLAMA)[0].rank == 3
