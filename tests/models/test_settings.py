"""Settings of a checkpoint that change nothing, and second copies that would."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import models
from models import ModelError
from models.folder import CONFIG
from tests.models.folders import FAMILIES, UNTIED, edit_config, edit_weights, params_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    models.write_folder(tmp_path / "model", UNTIED, params_of(UNTIED))
    return tmp_path / "model"


def test_settings_that_change_nothing_are_read_over_and_kept(folder: Path) -> None:
    idle = {
        "_name_or_path": "somebody/model",
        "attention_dropout": 0.1,
        "pretraining_tp": 1,
        "transformers_version": "4.40.0",
        "unsloth_version": "2025.1",
        "temperature": 0.6,
        "eos_token_id": [3, 4],
        "use_parallel_residual": False,
    }
    before = models.read_config(folder)
    edit_config(folder, **idle)
    config, params = models.read_folder(folder)
    assert config == before
    models.write_folder(folder.parent / "copy", config, params, source=folder)
    assert json.loads((folder.parent / "copy" / CONFIG).read_text()).items() >= idle.items()


def test_heads_of_their_own_size_are_read_where_transformers_reads_them(tmp_path: Path) -> None:
    config = dataclasses.replace(FAMILIES["qwen2"], head_dim=6)
    models.write_folder(tmp_path, config, params_of(config))
    assert models.read_config(tmp_path) == config


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_second_copy_of_tied_embeddings_that_differs_is_refused(family: str, tmp_path: Path) -> None:
    config = dataclasses.replace(FAMILIES[family], tied_embeddings=True)
    models.write_folder(tmp_path, config, params_of(config))
    other = np.ones((config.vocab_size, config.width), np.float32)
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": other}))
    with pytest.raises(
        ModelError, match=r"lm_head.weight differs from the embedding, though tie_word_embeddings"
    ):
        models.read_folder(tmp_path)
