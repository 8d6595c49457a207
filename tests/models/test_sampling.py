import dataclasses

import jax
import numpy as np
import pytest

import models
from models import DecoderConfig, RopeScaling, Sampling

CONFIG = DecoderConfig(vocab_size=19, width=16, layers=2, heads=4, kv_heads=2, mlp_width=20, max_positions=24)
# Larger than fresh values, so that the argmax moves with the context.
PARAMS = jax.tree.map(lambda x: 3 * x, models.init(CONFIG, jax.random.key(0)))
PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 7], [18, 8, 2, 8], [5], [7, 7, 3, 0, 2, 11, 12, 4, 3]]
NEW = 8
logits_of = jax.jit(models.logits, static_argnums=3)
# What differs between reading a row at once and token by token.
ARCHITECTURES = {
    "plain": {},
    "sliding window": {"window": 3},
    "scaled rotations": {"rope_scaling": RopeScaling(4.0, 1.0, 4.0, 12), "rope_theta": 20.0},
    "normed heads": {"qk_norm": True, "attention_bias": True},
    "learned positions": {"positions": "learned", "norm": "layer", "mlp": "plain"},
}


def log_probabilities(row: list[int], params: dict = PARAMS, config: DecoderConfig = CONFIG) -> np.ndarray:
    """log p of every next token after each token of a row, by a pass without a cache."""
    tokens, segments = np.zeros((2, 1, config.max_positions), np.int32)
    tokens[0, : len(row)], segments[0, : len(row)] = row, 1
    logits = logits_of(params, tokens, segments, config)[0, : len(row)]
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def uncached_argmax(prompt: list[int], *model) -> list[int]:
    row = list(prompt)
    for _ in range(NEW):
        row.append(int(np.argmax(log_probabilities(row, *model)[-1])))
    return row[len(prompt) :]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_the_uncached_argmax(name: str) -> None:
    config = dataclasses.replace(CONFIG, **ARCHITECTURES[name])
    params = jax.tree.map(lambda x: 3 * x, models.init(config, jax.random.key(0)))
    # Three rows for five prompts: two of them begin in the middle, where another has ended.
    answers = models.generate(params, PROMPTS, None, Sampling(NEW), config, batch_rows=3)
    expected = [uncached_argmax(prompt, params, config) for prompt in PROMPTS]
    assert len({token for row in expected for token in row}) > 3
    for prompt, answer, tokens in zip(PROMPTS, answers, expected, strict=True):
        np.testing.assert_array_equal(answer.tokens, tokens)
        after = log_probabilities(prompt + tokens, params, config)[len(prompt) - 1 : -1]
        np.testing.assert_allclose(answer.policy, after[np.arange(NEW), tokens], atol=1e-4)
        assert not np.any(answer.behaviour)
        assert not answer.ended
