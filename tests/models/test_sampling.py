"""Answers beside passes without a cache; what they do not depend on; what is refused."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import models
from bilevel import as_model
from bilevel.layout import Layout
from models import Answer, DecoderConfig, ModelError, RopeScaling, Sampling, lora, queue, rollout
from models.distribution import filtered
from models.sampling import filters_of
from tests.models.folders import FAMILIES, params_of

CONFIG = DecoderConfig(vocab_size=19, width=16, layers=2, heads=4, kv_heads=2, mlp_width=20, max_positions=24)
# Larger than fresh values, so that the argmax moves with the context.
PARAMS = jax.tree.map(lambda x: 3 * x, models.init(CONFIG, jax.random.key(0)))
PROMPTS = [
    [3, 1, 4, 1, 5, 9],
    [2, 7],
    [18, 8, 2, 8],
    [5],
    [7, 7, 3, 0, 2, 11, 12, 4, 3],
    [6, 6],
    [1, 2, 3],
    [9],
]
KEYS = models.row_keys(jax.random.key(5), range(100, 100 + len(PROMPTS)))
NEW = 8
WARM = Sampling(NEW, temperature=2.0, top_p=0.9, stop_tokens=(4, 11))
logits_of = jax.jit(models.logits, static_argnums=3)
# What differs between reading a row at once and token by token.
ARCHITECTURES = {
    "plain": {},
    "sliding window": {"window": 3},
    "scaled rotations": {"rope_scaling": RopeScaling(4.0, 1.0, 4.0, 12), "rope_theta": 20.0},
    "normed heads": {"qk_norm": True, "attention_bias": True},
    "learned positions": {"positions": "learned", "norm": "layer", "mlp": "plain"},
}


def next_logits(row: list[int], params: dict = PARAMS, config: DecoderConfig = CONFIG) -> np.ndarray:
    """Scores of the token after each of a row, by one pass without a cache."""
    tokens, segments = np.zeros((2, 1, CONFIG.max_positions), np.int32)
    tokens[0, : len(row)], segments[0, : len(row)] = row, 1
    return np.asarray(logits_of(params, tokens, segments, config)[0, : len(row)])


def uncached_argmax(prompt: list[int], *model) -> list[int]:
    row = list(prompt)
    for _ in range(NEW):
        row.append(int(np.argmax(next_logits(row, *model)[-1])))
    return row[len(prompt) :]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - np.log(np.sum(np.exp(scores), axis=-1, keepdims=True))


def tokens_of(answers: list[Answer]) -> list[list[int]]:
    return [answer.tokens.tolist() for answer in answers]


@cache
def warm_answers() -> list[Answer]:
    return models.generate(PARAMS, PROMPTS, KEYS, WARM, CONFIG)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_the_uncached_argmax(name: str) -> None:
    config = dataclasses.replace(CONFIG, **ARCHITECTURES[name])
    params = jax.tree.map(lambda x: 3 * x, models.init(config, jax.random.key(0)))
    # Fewer rows than prompts: some begin where others have ended.
    prompts = PROMPTS[:5]
    answers = models.generate(params, prompts, None, Sampling(NEW), config, batch_rows=2)
    expected = [uncached_argmax(prompt, params, config) for prompt in prompts]
    assert len({token for row in expected for token in row}) > 3
    assert tokens_of(answers) == expected
    for prompt, answer in zip(prompts, answers, strict=True):
        after = log_softmax(next_logits(prompt + answer.tokens.tolist(), params, config))[
            len(prompt) - 1 : -1
        ]
        np.testing.assert_allclose(answer.policy, after[np.arange(NEW), answer.tokens], atol=1e-4)
        assert not np.any(answer.behaviour)
        assert not answer.ended


@pytest.mark.parametrize("window", [None, 70])
def test_long_rows_are_remembered_as_room_grows_and_shrinks(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, max_positions=256, window=window)
    rng, limits = np.random.default_rng(0), [100, 20, 30, 20, 110]
    prompts = [rng.integers(0, 19, length).tolist() for length in (50, 40, 30, 9, 1)]
    sizes = []
    monkeypatch.setattr(
        queue, "resized", lambda *given, of=queue.resized: sizes.append(given[1]) or of(*given)
    )
    answers = models.generate(PARAMS, prompts, None, Sampling(150), config, limits=limits, batch_rows=2)
    changes = {size > before for before, size in pairwise(sizes) if size != before}
    assert changes == ({True, False} if window is None else set())
    tokens, segments = np.zeros((2, len(prompts), 256), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole = [*prompt, *answer.tokens]
        tokens[row, : len(whole)], segments[row, : len(whole)] = whole, 1
    scores = np.asarray(logits_of(PARAMS, tokens, segments, config))
    for row, (prompt, answer, limit) in enumerate(zip(prompts, answers, limits, strict=True)):
        at = slice(len(prompt) - 1, len(prompt) - 1 + limit)
        assert answer.tokens.tolist() == np.argmax(scores[row, at], axis=-1).tolist()
        after = log_softmax(scores[row, at])
        np.testing.assert_allclose(answer.policy, after[np.arange(limit), answer.tokens], atol=1e-4)


def test_log_probabilities_are_those_of_a_pass_over_the_whole_row() -> None:
    for prompt, answer in zip(PROMPTS, warm_answers(), strict=True):
        scores = next_logits(prompt + answer.tokens.tolist())[len(prompt) - 1 : -1]
        drawn_from = np.asarray(filtered(jnp.asarray(scores), filters_of(WARM)))
        at = np.arange(len(answer.tokens)), answer.tokens
        np.testing.assert_allclose(answer.policy, log_softmax(scores)[at], atol=1e-4)
        np.testing.assert_allclose(answer.behaviour, log_softmax(drawn_from)[at], atol=1e-4)


def test_rows_end_at_a_stop_token_or_are_cut() -> None:
    free = models.generate(PARAMS, PROMPTS, KEYS, dataclasses.replace(WARM, stop_tokens=()), CONFIG)
    for answer, whole in zip(warm_answers(), tokens_of(free), strict=True):
        stops = [place for place, token in enumerate(whole) if token in WARM.stop_tokens]
        length = min(stops) + 1 if stops else NEW
        assert answer.tokens.tolist() == whole[:length]
        assert answer.ended == bool(stops)
        assert len(answer.behaviour) == len(answer.policy) == length
    assert {answer.ended for answer in warm_answers()} == {True, False}
    assert not any(answer.ended for answer in free)


def test_answers_keep_to_limits_of_their_own_and_to_the_context() -> None:
    limits = [3, 1, 8, 8, 2, 5, 8, 8]
    cut = models.generate(PARAMS, PROMPTS, KEYS, WARM, CONFIG, limits=limits)
    for answer, whole, limit in zip(cut, tokens_of(warm_answers()), limits, strict=True):
        assert answer.tokens.tolist() == whole[:limit]
        assert answer.ended == (answer.tokens[-1] in WARM.stop_tokens)
    (long,) = models.generate(PARAMS, [[1] * (CONFIG.max_positions - 2)], None, Sampling(NEW), CONFIG)
    assert len(long.tokens) == 2


def test_answers_depend_neither_on_the_batch_nor_on_the_order() -> None:
    order = np.random.default_rng(1).permutation(len(PROMPTS))
    answers = models.generate(PARAMS, [PROMPTS[n] for n in order], KEYS[order], WARM, CONFIG, batch_rows=3)
    expected = [warm_answers()[n] for n in order]
    assert tokens_of(answers) == tokens_of(expected)
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.behaviour, other.behaviour, atol=1e-5)


def test_one_prompt_alone_says_what_it_says_among_others() -> None:
    for number in (1, 4):
        alone = models.generate(PARAMS, [PROMPTS[number]], KEYS[number : number + 1], WARM, CONFIG)
        assert tokens_of(alone) == [warm_answers()[number].tokens.tolist()]


def test_eight_devices_say_what_one_says_and_each_holds_its_rows() -> None:
    layout = Layout(jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2))
    sharding, params = layout.rows, layout.replicate(PARAMS)
    answers = models.generate(params, PROMPTS, KEYS, WARM, CONFIG, batch_rows=4, sharding=sharding)
    assert tokens_of(answers) == tokens_of(warm_answers())
    state = rollout.begin(
        rollout.Program(CONFIG, "auto", "threefry2x32", sharding), 4, 16, 16, 2, jnp.float32
    )
    assert state.cache.keys.addressable_shards[0].data.shape == (2, 1, 2, 4, 16)


def test_draws_of_one_row_differ_and_follow_its_key() -> None:
    first, second = (models.row_keys(jax.random.key(5), [100], draw) for draw in (0, 1))
    np.testing.assert_array_equal(jax.random.key_data(first), jax.random.key_data(KEYS[:1]))
    said = [models.generate(PARAMS, PROMPTS[:1], keys, WARM, CONFIG) for keys in (first, second)]
    assert tokens_of(said[0]) != tokens_of(said[1])
    raw = models.generate(PARAMS, PROMPTS[:1], jax.random.key_data(first), WARM, CONFIG)
    assert tokens_of(raw) == tokens_of(said[0])


def test_answers_come_as_they_end_each_once() -> None:
    limits = [6, 1, 1, 1, 6, 1, 1, 1]
    each = models.generate_each(PARAMS, PROMPTS, KEYS, WARM, CONFIG, limits=limits, batch_rows=3)
    found = list(each)
    numbers = [number for number, _ in found]
    assert sorted(numbers) == list(range(len(PROMPTS)))
    # The longest prompts are read first: 4, 0 and 2, of which only 2 is to say one token.
    assert numbers[0] == 2
    assert all(len(answer.tokens) <= limits[number] for number, answer in found)
    assert list(models.generate_each(PARAMS, [], None, Sampling(NEW), CONFIG)) == []


def test_other_prompts_and_settings_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chex.clear_trace_counter()
    monkeypatch.setattr(rollout, "prefill", chex.assert_max_traces(n=1)(rollout.prefill))
    monkeypatch.setattr(rollout, "decode", chex.assert_max_traces(n=1)(rollout.decode))
    # A size of its own, lest a program that another test compiled is found.
    config = dataclasses.replace(CONFIG, norm_epsilon=1e-4)
    models.generate(PARAMS, PROMPTS, KEYS, WARM, config)
    models.generate(PARAMS, [[2] * 15] * 7, KEYS[:7], Sampling(5, 0.5, top_p=0.2, stop_tokens=(1,)), config)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        models.generate(PARAMS, [[1] * 17], None, Sampling(NEW), config)


def test_adapters_are_heard_and_runs_may_ask() -> None:
    config, params = FAMILIES["qwen3"], params_of(FAMILIES["qwen3"])
    adapter = models.LoraConfig(2, 16.0, ("query", "value"))
    model = models.LanguageModel(
        config, lora.init(config, adapter, jax.random.key(1)), base=params, adapter=adapter
    )
    tuned = jax.tree.map(lambda x: x + 0.5 * jnp.sin(1e3 * x + 1), model.params)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    expected = models.generate(lora.merge(params, tuned, adapter), prompts, None, Sampling(12), config)
    answers = as_model(model).generate(tuned, prompts, None, Sampling(12))
    assert tokens_of(answers) == tokens_of(expected)
    assert tokens_of(answers) != tokens_of(model.generate(model.params, prompts, None, Sampling(12)))
    assert tokens_of(answers) == tokens_of(
        [answer for _, answer in sorted(as_model(model).generate_each(tuned, prompts, None, Sampling(12)))]
    )
    scores = as_model(model).choices(tuned, prompts, [[answer.tokens] for answer in answers])
    for answer, score in zip(answers, scores, strict=True):
        np.testing.assert_allclose(score.log_likelihoods, [answer.policy.sum()], atol=1e-4)
        assert score.greedy.tolist() == [True]


def test_bfloat16_products_are_kept_in_the_cache_and_summed_in_float32() -> None:
    model = models.LanguageModel(CONFIG, PARAMS, dtype="bfloat16")
    answers = model.generate(PARAMS, PROMPTS[:3], None, Sampling(NEW))
    narrow = models.cast(PARAMS, "bfloat16")
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        after = log_softmax(next_logits(prompt + answer.tokens.tolist(), narrow))[len(prompt) - 1 : -1]
        np.testing.assert_allclose(answer.policy, after[np.arange(NEW), answer.tokens], atol=0.05)
        assert answer.policy.dtype == np.float32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must be 0 or positive, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be 0 or positive, not nan"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, not 1.5"),
        ({"stop_tokens": (2, -1)}, r"stop_tokens must be token ids, not \(2, -1\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Sampling(**{"max_new_tokens": 1} | settings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"prompts": [[1], [2] * 24]},
            "prompt 1 has 24 tokens and leaves no room .* made for 24 positions; shorten",
        ),
        ({"prompts": [[1], []]}, "prompt 1 is empty: give it a token"),
        ({"prompts": [[1], [19]]}, "prompt 1: token 19 is outside the model's vocabulary of 19"),
        ({"prompts": [[-2, 3]]}, "prompt 0: token -2 is outside"),
        ({"sampling": Sampling(2, 1.0)}, "sampling at a temperature needs a key a prompt"),
        ({"keys": KEYS[:3]}, "3 keys for 1 prompts: give one a prompt"),
        ({"limits": [1, 2]}, "2 limits for 1 prompts"),
        ({"limits": [0]}, "limit 0 must be at least 1, not 0"),
        ({"batch_rows": 0}, "batch_rows must be at least 1"),
        ({"attention": "fast"}, "unknown attention 'fast'"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(given: dict, said: str) -> None:
    how = {"prompts": [[1]], "keys": None, "sampling": Sampling(2)} | given
    with pytest.raises(ModelError, match=said):
        models.generate_each(PARAMS, config=CONFIG, **how)
