"""Greedy answers beside transformers' `generate`, log-probabilities and choices beside passes of torch."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from models import Sampling
from tests.parity.test_families import VARIANTS, saved_by_torch

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch (the parity extra)"),
]

EACH_FAMILY = ["llama 3", "mistral, window", "qwen 2, 4 heads", "qwen 3, 2 heads biases", "gpt-2"]
RNG = np.random.default_rng(0)
RANDOM_PROMPTS = [RNG.integers(3, 31, length).tolist() for length in (1, 9, 4, 17, 2, 30)]


def generated_by_torch(model: Any, prompts: list[list[int]], new: int, stop: int) -> list[list[int]]:
    """Greedy answers of one batch, padded on the left, each cut behind its stop token."""
    import torch

    width = max(map(len, prompts))
    tokens, mask = np.zeros((2, len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, 1
    given = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        whole = model.generate(
            **given, do_sample=False, max_new_tokens=new, eos_token_id=stop, pad_token_id=stop
        )
    answers = whole[:, width:].tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in answers]


def log_probabilities(model: Any, row: list[int]) -> np.ndarray:
    """log p of each token but the first, and the argmax at its place, by a pass over the whole row."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1].double()
    scores = torch.log_softmax(logits, dim=-1).numpy()
    return scores[np.arange(len(row) - 1), row[1:]], scores.argmax(axis=-1) == np.asarray(row[1:])


def assert_choices(model: Any, ours: Any, prompts: list[list[int]], given: list[list[list[int]]]) -> None:
    for prompt, choices, scores in zip(
        prompts, given, ours.choices(ours.params, prompts, given), strict=True
    ):
        for number, choice in enumerate(choices):
            found, best = log_probabilities(model, [*prompt, *choice])
            np.testing.assert_allclose(
                scores.log_likelihoods[number], found[-len(choice) :].sum(), rtol=1e-5, atol=1e-4
            )
            assert scores.greedy[number] == best[-len(choice) :].all()


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_greedy_and_choices_of_every_family(name: str, tmp_path: Path) -> None:
    assert VARIANTS[name]
    model = saved_by_torch(tmp_path, name)
    ours = models.load(tmp_path)
    expected = generated_by_torch(model, RANDOM_PROMPTS, 24, stop=5)
    answers = ours.generate(ours.params, RANDOM_PROMPTS, None, Sampling(24, stop_tokens=(5,)), batch_rows=4)
    assert [answer.tokens.tolist() for answer in answers] == expected
    assert [answer.ended for answer in answers] == [row[-1] == 5 for row in expected]
    for prompt, answer in zip(RANDOM_PROMPTS, answers, strict=True):
        whole = log_probabilities(model, [*prompt, *answer.tokens.tolist()])[0]
        np.testing.assert_allclose(answer.policy, whole[len(prompt) - 1 :], atol=1e-4)
    given = [[row[:2], [7], [*row[:3], 1, 2]] for row in expected]
    assert_choices(model, ours, RANDOM_PROMPTS, given)


@pytest.fixture(scope="module")
def stories(stories_folder: Path) -> tuple[Any, Any]:
    """The trained model in torch, and here."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(stories_folder).eval(), models.load(stories_folder)


def test_greedy_of_a_trained_model_on_fifty_prompts(stories: tuple[Any, Any], shared_folder: Path) -> None:
    model, ours = stories
    text = (shared_folder / "data" / "text_tinystories.txt").read_text(encoding="utf-8")
    paragraphs = [line for line in text.splitlines() if len(line) > 200][:50]
    lengths = np.random.default_rng(1).integers(1, 60, 50)
    prompts = [
        ours.tokenizer(line)["input_ids"][:length] for line, length in zip(paragraphs, lengths, strict=True)
    ]
    assert len(prompts) == 50
    expected = generated_by_torch(model, prompts, 100, stop=ours.tokenizer.eos_token_id)
    sampling = Sampling(100, stop_tokens=(ours.tokenizer.eos_token_id,))
    answers = ours.generate(ours.params, prompts, None, sampling, batch_rows=16)
    assert [answer.tokens.tolist() for answer in answers] == expected


def test_choices_of_a_trained_model(stories: tuple[Any, Any], shared_folder: Path) -> None:
    model, ours = stories
    lines = (shared_folder / "data" / "eval_arc_easy.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    rows = [json.loads(line) for line in lines]

    def tokens(text: str) -> list[int]:
        return ours.tokenizer(text, add_special_tokens=False)["input_ids"]

    prompts = [[ours.tokenizer.bos_token_id, *tokens(row["query"])] for row in rows]
    assert_choices(model, ours, prompts, [[tokens(choice) for choice in row["choices"]] for row in rows])
