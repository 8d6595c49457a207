import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import DecoderConfig, ModelError, RopeScaling, sampling

CONFIG = DecoderConfig(vocab_size=19, width=16, layers=2, heads=4, kv_heads=2, mlp_width=20, max_positions=24)
# Larger than fresh values, so that the argmax moves with the context.
PARAMS = jax.tree.map(lambda x: 3 * x, models.init(CONFIG, jax.random.key(0)))
PROMPTS = [[3, 1, 4, 1, 5, 9], [2, 7], [18, 8, 2, 8]]
NEW = 8


def padded(prompts: list[list[int]], side: str = "right", width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.full((len(prompts), width), 11, np.int32)
    segments = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if side == "right" else slice(width - len(prompt), width)
        tokens[row, place], segments[row, place] = prompt, 1
    return tokens, segments


def uncached_argmax(prompt: list[int], config: DecoderConfig = CONFIG, params: dict = PARAMS) -> list[int]:
    row = list(prompt)
    for _ in range(NEW):
        tokens, segments = padded([row], width=len(PROMPTS[0]) + NEW)
        logits = logits_of(params, tokens, segments, config)
        row.append(int(jnp.argmax(logits[0, len(row) - 1])))
    return row[len(prompt) :]


logits_of = jax.jit(models.logits, static_argnums=3)
# What differs between reading a row at once and token by token.
ARCHITECTURES = {
    "sliding window": {"window": 3},
    "scaled rotations": {"rope_scaling": RopeScaling(4.0, 1.0, 4.0, 12), "rope_theta": 20.0},
    "normed heads": {"qk_norm": True, "attention_bias": True},
    "learned positions": {"positions": "learned", "norm": "layer", "mlp": "plain"},
}


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_equals_the_uncached_argmax(side: str) -> None:
    generated = models.generate(PARAMS, *padded(PROMPTS, side), CONFIG, max_new_tokens=NEW)
    expected = [uncached_argmax(prompt) for prompt in PROMPTS]
    assert len({token for row in expected for token in row}) > 3
    np.testing.assert_array_equal(generated.tokens, expected)
    np.testing.assert_array_equal(generated.lengths, [NEW] * 3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_the_uncached_argmax_in_every_architecture(name: str) -> None:
    config = dataclasses.replace(CONFIG, **ARCHITECTURES[name])
    params = jax.tree.map(lambda x: 3 * x, models.init(config, jax.random.key(0)))
    generated = models.generate(params, *padded(PROMPTS), config, max_new_tokens=NEW)
    expected = [uncached_argmax(prompt, config, params) for prompt in PROMPTS]
    assert len({token for row in expected for token in row}) > 3
    np.testing.assert_array_equal(generated.tokens, expected)


def test_rows_end_at_the_stop_token() -> None:
    free = np.asarray(models.generate(PARAMS, *padded(PROMPTS), CONFIG, max_new_tokens=NEW).tokens)
    stop = int(free[0, 2])
    generated = models.generate(PARAMS, *padded(PROMPTS), CONFIG, max_new_tokens=NEW, stop_token=stop)
    for row in range(len(PROMPTS)):
        hits = np.flatnonzero(free[row] == stop)
        length = hits[0] + 1 if len(hits) else NEW
        assert generated.lengths[row] == length
        np.testing.assert_array_equal(generated.tokens[row, :length], free[row, :length])
        assert np.all(generated.tokens[row, length:] == stop)
    assert generated.lengths[0] <= 3


def test_samples_follow_the_softmax_at_the_temperature() -> None:
    tokens, segments = padded([PROMPTS[0]] * 4000)
    key = jax.random.key(5)
    drawn = models.generate(PARAMS, tokens, segments, CONFIG, max_new_tokens=1, temperature=2.0, key=key)
    expected = jax.nn.softmax(logits_of(PARAMS, tokens[:1], segments[:1], CONFIG)[0, -1] / 2.0)
    shares = np.bincount(drawn.tokens[:, 0], minlength=CONFIG.vocab_size) / 4000
    np.testing.assert_allclose(shares, expected, atol=0.03)


def test_samples_depend_on_the_key_alone() -> None:
    def draw(seed: int) -> np.ndarray:
        key = jax.random.key(seed)
        settings = {"max_new_tokens": NEW, "temperature": 5.0, "key": key}
        return np.asarray(models.generate(PARAMS, *padded(PROMPTS), CONFIG, **settings).tokens)

    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))
    assert not np.array_equal(draw(0)[:, 0], draw(0)[:, 1])


def test_rows_without_a_prompt_disturb_no_other() -> None:
    with_empty = models.generate(PARAMS, *padded([PROMPTS[0], [], PROMPTS[2]]), CONFIG, max_new_tokens=NEW)
    for row in (0, 2):
        np.testing.assert_array_equal(with_empty.tokens[row], uncached_argmax(PROMPTS[row]))


def test_nothing_compiles_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    chex.clear_trace_counter()
    monkeypatch.setattr(sampling, "prefill", chex.assert_max_traces(n=1)(sampling.prefill))
    # A size of its own, lest a program that another test compiled is found.
    settings = {"config": CONFIG, "max_new_tokens": 3}
    models.generate(PARAMS, *padded(PROMPTS), **settings)
    models.generate(PARAMS, *padded(PROMPTS[::-1]), **settings, stop_token=4)
    models.generate(PARAMS, *padded(PROMPTS), **settings, temperature=1.0, key=jax.random.key(1))
    with pytest.raises(AssertionError, match="traced > 1 times"):
        models.generate(PARAMS, *padded(PROMPTS), CONFIG, max_new_tokens=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"max_new_tokens": 19}, "6 prompt and 19 new tokens, but the model is made for 24 positions"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature must not be negative"),
        ({"max_new_tokens": 1, "temperature": 1.0}, "sampling at a temperature needs a key"),
        ({"max_new_tokens": 1, "attention": "fast"}, "unknown attention 'fast'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.generate(PARAMS, *padded(PROMPTS), CONFIG, **settings)
