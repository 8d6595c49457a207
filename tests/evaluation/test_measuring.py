"""What tasks measure on a small random model, beside the same from its logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.evaluation import TaskOptions
from bilevel.evaluation.answers import Answering
from bilevel.layout import data_layout
from bilevel.storage.ledger import Ledger
from tests.evaluation.asked import (
    PASSAGES,
    PROMPTS,
    QUESTIONS,
    ROWS,
    context,
    language,
    model,
    prepared,
    reading,
    write,
)

PARAMS = language().params
OPTIONS = TaskOptions(Answering(max_new_tokens=8))


@jax.jit
def logits(tokens: np.ndarray) -> jax.Array:
    return jax.nn.log_softmax(
        language().logits(PARAMS, {"tokens": tokens, "segments": jnp.ones_like(tokens)})
    )


def log_probabilities(prompt: list[int], following: list[int]) -> tuple[np.ndarray, bool]:
    """Those of each token after a prompt, and whether all are the most probable ones; one width for one program."""
    whole = np.zeros((1, 64), np.int32)
    whole[0, : len(prompt) + len(following)] = [*prompt, *following]
    scores = np.asarray(logits(whole))[0, len(prompt) - 1 : len(prompt) + len(following) - 1]
    return scores[np.arange(len(following)), following], bool(np.all(scores.argmax(axis=1) == following))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.mark.parametrize("by", ["choices", "rows"])
def test_multiple_choice_is_the_most_likely_continuation(by: str, folder: Path) -> None:
    task = prepared(write(folder, "questions.jsonl", *QUESTIONS), OPTIONS)
    bundle = model() if by == "choices" else replace(model(), choices=None)
    found = task.measure(PARAMS, context(bundle)).columns
    tokenizer = language().tokenizer
    for number, row in enumerate(QUESTIONS):
        text = f"{row['query']}\nAnswer:"
        prompt = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        sums, tokens = [], []
        for choice in row["choices"]:
            whole = tokenizer(f"{text} {choice}", add_special_tokens=False)["input_ids"]
            tokens.append(whole[len(prompt) - 1 :])
            sums.append(log_probabilities(prompt, tokens[-1])[0].sum())
        lengths = {
            "": [1] * len(sums),
            "_norm": [len(choice) for choice in row["choices"]],
            "_bytes": [len(choice.encode()) for choice in row["choices"]],
            "_tokens": [len(some) for some in tokens],
        }
        for name, length in lengths.items():
            chosen = int(np.argmax(np.array(sums) / length))
            assert found[f"chosen{name}"][number] == chosen
            assert found[f"correct{name}"][number] == (chosen == row["gold"])
        assert found["log_probability"][number] == pytest.approx(sums[row["gold"]], abs=1e-4)
    assert task.encoded.notices == ("guessing gets 0.344 of these questions right",)


def test_last_words_and_losses_are_those_of_the_logits(folder: Path) -> None:
    passages = prepared(write(folder, "passages.jsonl", *PASSAGES), OPTIONS)
    found = passages.measure(PARAMS, context())
    expected = [_of_row(passages.encoded.tokens, number) for number in range(len(PASSAGES))]
    nll, greedy = (np.array(values) for values in zip(*expected, strict=True))
    np.testing.assert_allclose(found.columns["nll"], [-one.sum() for one in nll], atol=1e-4)
    assert found.values["perplexity"] == pytest.approx(np.exp(np.mean([-one.sum() for one in nll])), rel=1e-4)
    assert found.values["accuracy"] == pytest.approx(np.mean(greedy))

    rows = prepared(write(folder, "rows.jsonl", *ROWS), OPTIONS)
    expected = [_of_row(rows.encoded.tokens, number) for number in range(len(ROWS))]
    parts = [one for one, _ in expected]
    values = rows.measure(PARAMS, context()).values
    assert values["loss"] == pytest.approx(np.mean([-one.mean() for one in parts]), rel=1e-5)
    assert values["perplexity"] == pytest.approx(np.exp(-np.concatenate(parts).mean()), rel=1e-4)
    assert values["exact_match"] == np.mean([greedy for _, greedy in expected])


def _of_row(encoded, number: int) -> tuple[np.ndarray, bool]:
    tokens = encoded.tokens[number][encoded.segments[number] > 0].tolist()
    counted = int(encoded.loss_mask[number].sum())
    return log_probabilities(tokens[:-counted], tokens[-counted:])


def greedy(prompt: list[int], most: int) -> list[int]:
    """Greedy tokens one by one from the logits, as a model without a cache would say them."""
    said: list[int] = []
    while len(said) < most and language().tokenizer.eos_token_id not in said:
        whole = np.zeros((1, 64), np.int32)
        whole[0, : len(prompt) + len(said)] = prompt + said
        said.append(int(np.asarray(logits(whole))[0, len(prompt) + len(said) - 1].argmax()))
    return said


def test_generated_answers_are_compared_with_expected_ones(folder: Path) -> None:
    task = prepared("generate:" + write(folder, "answers.jsonl", *ROWS), OPTIONS)
    expected = [greedy(prompt, 8) for prompt in task.encoded.tokens]
    texts = [language().tokenizer.decode(said, skip_special_tokens=True).strip() for said in expected]
    rows = [{**row, "output": text} for row, text in zip(ROWS[:2], texts, strict=False)]
    right = prepared("generate:" + write(folder, "right.jsonl", *rows, ROWS[2]), OPTIONS)
    found = right.measure(PARAMS, context())
    assert found.columns["response"].tolist() == texts
    assert found.columns["tokens"].tolist() == [len(said) for said in expected]
    assert found.columns["exact_match"].tolist() == [1, 1, 0]
    assert found.values["exact_match"] == pytest.approx(2 / 3)


def test_refusals_are_counted_for_each_label(folder: Path) -> None:
    task = prepared("refusal:" + write(folder, "prompts.jsonl", *PROMPTS), OPTIONS)
    (said,) = {greedy(prompt, 8)[0] for prompt in task.encoded.tokens[:1]}
    phrases = (language().tokenizer.decode([said]).strip().lower() or "one",)
    kind = replace(task.task.kind, phrases=phrases)
    found = replace(task.task, kind=kind).prepared(reading()).measure(PARAMS, context())
    groups = found.groups("label")
    assert {name: len(one.ids) for name, one in groups.items()} == {"safe": 2, "unsafe": 1}
    together = sum(len(one.ids) * one.values["refusal_rate"] for one in groups.values())
    assert together == pytest.approx(found.columns["refused"].sum())


class Counting:
    """A model that counts the answers that it gives, and may be killed."""

    def __init__(self, survives: int = 10**9):
        self.given = 0
        self.survives = survives

    def __call__(self, params, prompts, keys, sampling, **how):
        for answer in language().generate_each(params, prompts, keys, sampling, **how):
            if self.given == self.survives:
                raise KeyboardInterrupt
            self.given += 1
            yield answer


def test_a_killed_evaluation_repeats_no_recorded_answer(folder: Path, tmp_path: Path) -> None:
    many = [{"prompt": f"say {number}"} for number in range(20)]
    task = prepared("refusal:" + write(folder, "many.jsonl", *many), OPTIONS)
    whole = task.measure(PARAMS, context(replace(model(), generate_each=None)))
    killed, again = Counting(survives=13), Counting()
    with Ledger(tmp_path / "answers.jsonl") as ledger, pytest.raises(KeyboardInterrupt):
        task.measure(PARAMS, context(replace(model(), generate_each=killed)), ledger)
    with Ledger(tmp_path / "answers.jsonl") as ledger:
        assert len(ledger) == 13
        found = task.measure(PARAMS, context(replace(model(), generate_each=again)), ledger)
        assert again.given == 7
        # Other parameters, other answers.
        other = jax.tree.map(lambda x: 2 * x, PARAMS)
        task.measure(other, context(replace(model(), generate_each=again)), ledger)
    assert again.given == 7 + 20
    assert found.columns["response"].tolist() == whole.columns["response"].tolist()


def test_evaluations_stop_between_batches(folder: Path) -> None:
    class AskedToStop(Exception):
        pass

    def pause() -> None:
        raise AskedToStop

    for source in (
        write(folder, "some_questions.jsonl", *QUESTIONS),
        write(folder, "some_passages.jsonl", *PASSAGES),
        "refusal:" + write(folder, "some_prompts.jsonl", *PROMPTS),
    ):
        with pytest.raises(AskedToStop):
            prepared(source, OPTIONS).measure(PARAMS, context(), pause=pause)


def test_answers_do_not_depend_on_company_order_or_devices(folder: Path) -> None:
    rows = [{"prompt": f"say {number} and the cat" if number % 3 else "on"} for number in range(9)]
    options = TaskOptions(Answering(max_new_tokens=8, temperature=1.0, top_p=0.9))
    task = prepared("refusal:" + write(folder, "drawn.jsonl", *rows), options)
    everywhere = replace(context(), layout=data_layout())
    one, eight = (task.measure(PARAMS, each).columns["response"].tolist() for each in (context(), everywhere))
    assert one == eight
    assert len(set(one)) > 3
    alone = replace(task.task, rows=task.task.rows[4:5]).prepared(reading())
    assert alone.measure(PARAMS, context()).columns["response"].tolist() == one[4:5]
    assert task.measure(PARAMS, context(seed=1)).columns["response"].tolist() != one
