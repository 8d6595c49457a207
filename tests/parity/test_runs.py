"""What a run leaves gives the same logits in transformers and peft."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import models
from bilevel.data.tokenizer import load_tokenizer
from experiments.bds_alpaca import main
from models import lora

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft (the parity extra)"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def left(stories_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model folders of two runs that differ in whether the adapter is merged."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [
        "--corpus.rows",
        "64",
        "--corpus.valid",
        "16",
        "--corpus.test",
        "8",
        "--model",
        str(stories_folder),
    ]
    flags += ["--lora.rank", "4", "--lora.targets", "all", "--learning-rate", "0.03", "--baselines", "none"]
    flags += ["--steps", "5", "--batch-rows", "16", "--upper-rows", "16"]
    for name, merge in (("adapter", []), ("merged", ["--merge"])):
        assert main([*flags, *merge, "--run-dir", str(folder / name)]) == 0
    return {name: folder / name / "model" for name in ("adapter", "merged")}


def test_adapters_load_in_peft_and_merged_models_in_transformers(
    stories_folder: Path, left: dict[str, Path]
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "Once upon a time, there was a little girl named Lily. She said: add 3 and 4."
    tokens = np.array([load_tokenizer(left["adapter"])(text)["input_ids"]])
    config, params = models.read_folder(stories_folder)
    settings, adapter = models.read_adapter(left["adapter"], config)
    attached = lora.attach(params, adapter, settings)
    expected = models.logits(attached, tokens, np.ones_like(tokens), config)
    assert np.abs(models.logits(params, tokens, np.ones_like(tokens), config) - expected).max() > 0.5

    loaded = {
        "onto its base": PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(stories_folder), left["adapter"]
        ),
        "by itself": AutoPeftModelForCausalLM.from_pretrained(left["adapter"]),
        "merged": AutoModelForCausalLM.from_pretrained(left["merged"]),
    }
    for name, model in loaded.items():
        with torch.no_grad():
            found = model.eval()(input_ids=torch.tensor(tokens)).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=name)
    for folder in left.values():
        assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == tokens[0].tolist()
