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
def tokenizer(stories_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(stories_folder)


def row(tokenizer: PreTrainedTokenizerFast, text: str) -> dict:
    tokens = jnp.array([tokenizer(text)["input_ids"]], jnp.int32)
    assert tokens[0, 0] == tokenizer.bos_token_id
    return {"tokens": tokens, "segments": jnp.ones_like(tokens)}


def test_loss_of_a_sentence(stories_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config, params = models.read_folder(stories_folder)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 260_032
    loss = models.token_scores(params, row(tokenizer, SENTENCE), config).loss
    np.testing.assert_allclose(jnp.mean(loss[0, 1:]), 0.3535, atol=5e-5)


def test_greedy_text(stories_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config, params = models.read_folder(stories_folder)
    batch = row(tokenizer, "Once upon a time")
    (answer,) = models.generate(
        params, np.asarray(batch["tokens"]).tolist(), None, models.Sampling(50), config
    )
    assert tokenizer.decode(answer.tokens).startswith(CONTINUATION)


def test_round_trip(stories_folder: Path, tmp_path: Path) -> None:
    config, params = models.read_folder(stories_folder)
    models.write_folder(tmp_path, config, params, source=stories_folder)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (stories_folder / "config.json").read_text()
    )
    copy_config, copy = models.read_folder(tmp_path)
    assert copy_config == config
    chex.assert_trees_all_close(copy, params, atol=1e-6)
    assert (tmp_path / "tokenizer.json").read_bytes() == (stories_folder / "tokenizer.json").read_bytes()
