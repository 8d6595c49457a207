"""A real trained model, read from its folder."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import models

SENTENCE = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big dog."
)
CONTINUATION = (
    ", there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


@pytest.fixture(scope="module")
def folder(shared_folder: Path) -> Path:
    folder = shared_folder / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no trained model: {folder} is no folder")
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(folder)


def row(tokenizer: PreTrainedTokenizerFast, text: str) -> dict:
    tokens = jnp.array([tokenizer(text)["input_ids"]], jnp.int32)
    assert tokens[0, 0] == tokenizer.bos_token_id
    return {"tokens": tokens, "segments": jnp.ones_like(tokens)}


def test_loss_of_a_sentence(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config, params = models.read_folder(folder)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 260_032
    loss = models.token_scores(params, row(tokenizer, SENTENCE), config).loss
    np.testing.assert_allclose(jnp.mean(loss[0, 1:]), 0.3535, atol=5e-5)


def test_greedy_text(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config, params = models.read_folder(folder)
    batch = row(tokenizer, "Once upon a time")
    (answer,) = models.generate(
        params, np.asarray(batch["tokens"]).tolist(), None, models.Sampling(50), config
    )
    assert tokenizer.decode(answer.tokens).startswith(CONTINUATION)


def test_round_trip(folder: Path, tmp_path: Path) -> None:
    config, params = models.read_folder(folder)
    models.write_folder(tmp_path, config, params, source=folder)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    copy_config, copy = models.read_folder(tmp_path)
    assert copy_config == config
    chex.assert_trees_all_close(copy, params, atol=1e-6)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
