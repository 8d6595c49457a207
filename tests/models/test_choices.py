"""Continuations scored behind a prompt that is read once, beside a pass over each whole row."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import models
from models import ModelError, choices
from tests.models.folders import FAMILIES, params_of

LLAMA = FAMILIES["llama"]
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7], [12], [8, 2, 8, 4]]
CONTINUATIONS = [
    [[1], [2, 3, 4], [5, 6]],
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [7]],
    [[4, 4, 4, 4], [4, 4, 4, 4], [4, 4, 4], [9, 9], [1, 2]],
    [[11]],
]
WIDTH = 32
logits_of = jax.jit(models.logits, static_argnums=3)


def by_whole_rows(prompts, continuations, params, config) -> list[tuple[list[float], list[bool]]]:
    """Sums of log p, and whether every token is the argmax, each continuation in a pass of its own."""
    found = []
    for prompt, own in zip(prompts, continuations, strict=True):
        tokens, segments = np.zeros((2, 8, WIDTH), np.int32)
        for row, choice in enumerate(own):
            whole = [*prompt, *choice]
            tokens[row, : len(whole)], segments[row, : len(whole)] = whole, 1
        scores = np.asarray(logits_of(params, tokens, segments, config), float)
        log_p = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        sums, greedy = [], []
        for row, choice in enumerate(own):
            at = np.arange(len(prompt) - 1, len(prompt) + len(choice) - 1)
            sums.append(log_p[row, at, choice].sum())
            greedy.append(bool(np.all(np.argmax(log_p[row, at], axis=-1) == choice)))
        found.append((sums, greedy))
    return found


def assert_scores(found, prompts, continuations, params, config) -> None:
    expected = by_whole_rows(prompts, continuations, params, config)
    assert len(found) == len(prompts)
    for scores, own, (sums, greedy) in zip(found, continuations, expected, strict=True):
        np.testing.assert_allclose(scores.log_likelihoods, sums, atol=1e-4)
        np.testing.assert_array_equal(scores.lengths, [len(choice) for choice in own])
        np.testing.assert_array_equal(scores.greedy, greedy)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_scores_are_those_of_whole_rows(name: str) -> None:
    config, params = FAMILIES[name], jax.tree.map(lambda x: 3 * x, params_of(FAMILIES[name]))
    found = models.choice_log_likelihoods(params, PROMPTS, CONTINUATIONS, config)
    assert_scores(found, PROMPTS, CONTINUATIONS, params, config)


def test_the_models_own_answer_is_greedy_and_no_other() -> None:
    params = jax.tree.map(lambda x: 3 * x, params_of(LLAMA))
    own = [
        answer.tokens.tolist() for answer in models.generate(params, PROMPTS, None, models.Sampling(5), LLAMA)
    ]
    given = [[answer, answer[:1], [*answer[:3], (answer[3] + 1) % 13], answer[:4]] for answer in own]
    found = models.choice_log_likelihoods(params, PROMPTS, given, LLAMA)
    assert [scores.greedy.tolist() for scores in found] == [[True, True, False, True]] * len(PROMPTS)


def test_ratings_that_all_prompts_share_and_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = [[digit] for digit in range(10)] + [[1, 0]]
    params = jax.tree.map(lambda x: 3 * x, params_of(LLAMA))
    found = models.choice_log_likelihoods(params, PROMPTS, [ratings] * 4, LLAMA)
    expected = [models.choice_log_likelihoods(params, [prompt], [ratings], LLAMA)[0] for prompt in PROMPTS]
    monkeypatch.setattr(choices, "SCORES_AT_ONCE", 2 * LLAMA.heads * 32 * 64)
    calls = []
    monkeypatch.setattr(
        choices, "_scored", lambda *given, of=choices._scored: calls.append(given) or of(*given)
    )
    narrow = models.choice_log_likelihoods(params, PROMPTS, [ratings] * 4, LLAMA)
    assert [given[1]["tokens"].shape[0] for given in calls] == [2, 2]
    for scores, alone, other in zip(found, expected, narrow, strict=True):
        np.testing.assert_allclose(scores.log_likelihoods, alone.log_likelihoods, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(scores.log_likelihoods, other.log_likelihoods, rtol=1e-5, atol=1e-5)


def test_eight_devices_score_as_one_does() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    score = partial(models.choice_log_likelihoods, params_of(LLAMA), PROMPTS, CONTINUATIONS, LLAMA)
    for scores, expected in zip(score(sharding=rows), score(), strict=True):
        np.testing.assert_allclose(scores.log_likelihoods, expected.log_likelihoods, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "continuations", "said"),
    [
        ([[1], [2]], [[[3]]], "1 lists of continuations for 2 prompts"),
        ([[1], []], [[[3]], [[3]]], "prompt 1 is empty"),
        ([[1]], [[]], "prompt 0 has no continuation to score"),
        ([[1], [1]], [[[3]], [[3], []]], "prompt 1: continuation 1 is empty"),
        ([[1]], [[[3], [13]]], "prompt 0: continuation 1: token 13 is outside the model's vocabulary of 13"),
        (
            [[1] * 60],
            [[[3], [3] * 5]],
            "prompt 0 has 60 tokens and a continuation of 5: .* made for 64 positions",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(prompts, continuations, said: str) -> None:
    mistral = FAMILIES["mistral"]
    with pytest.raises(ModelError, match=said):
        models.choice_log_likelihoods(params_of(mistral), prompts, continuations, mistral)
