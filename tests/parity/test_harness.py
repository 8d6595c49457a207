"""Our scores, lm-evaluation-harness's own, and torch's, on the same rows of a local task."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import models
from bilevel import as_model
from bilevel.evaluation import Reading, read_tasks
from bilevel.layout import data_layout
from bilevel.schedule import Context

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness (the eval extra)"
    ),
    pytest.mark.filterwarnings("ignore"),
]

ROWS = 24
TASK = {
    "task": "questions",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.fixture(scope="module")
def rows(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = shared_folder / "data" / "eval_arc_easy.jsonl"
    if not source.is_file():
        pytest.skip(f"no questions: {source} is no file")
    path = tmp_path_factory.mktemp("task") / "questions.jsonl"
    path.write_text("".join(source.read_text().splitlines(keepends=True)[:ROWS]))
    return path


@pytest.fixture(scope="module")
def language(stories_folder: Path) -> models.LanguageModel:
    return models.load(stories_folder)


@pytest.fixture(scope="module")
def theirs(stories_folder: Path) -> Any:
    """The harness's own model on torch."""
    from lm_eval.models.huggingface import HFLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HFLM(
            pretrained=str(stories_folder), device="cpu", dtype="float32", batch_size=8, add_bos_token=True
        )


@pytest.fixture(scope="module")
def ours(language: models.LanguageModel) -> Any:
    from models.harness import HarnessModel

    return HarnessModel(language, batch_rows=8)


def evaluated(model: Any, rows: Path) -> dict[str, Any]:
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager

    described = {**TASK, "dataset_kwargs": {"data_files": {"test": str(rows)}}}
    (rows.parent / "questions.yaml").write_text(yaml.safe_dump(described))
    manager = TaskManager(include_path=str(rows.parent), include_defaults=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lm_eval.simple_evaluate(
            model=model, tasks=["questions"], task_manager=manager, bootstrap_iters=0, log_samples=True
        )


def likelihoods(found: dict[str, Any]) -> list[list[float]]:
    samples = sorted(found["samples"]["questions"], key=lambda sample: sample["doc_id"])
    return [[float(one[0]) for one in sample["filtered_resps"]] for sample in samples]


def test_scores_of_a_local_task_are_the_same(
    ours: Any, theirs: Any, rows: Path, language: models.LanguageModel
) -> None:
    import torch

    one, other = evaluated(ours, rows), evaluated(theirs, rows)
    assert len(likelihoods(one)) == ROWS
    for mine, their in zip(likelihoods(one), likelihoods(other), strict=True):
        np.testing.assert_allclose(mine, their, atol=1e-4)
    scores = {name: one["results"]["questions"][f"{name},none"] for name in ("acc", "acc_norm")}
    assert scores == {name: other["results"]["questions"][f"{name},none"] for name in scores}

    # The same rows as a task of ours.
    (task,) = read_tasks([str(rows)])
    prepared = task.prepared(Reading(language.tokenizer, language.config.max_positions))
    context = Context(as_model(language), data_layout(jax.devices()[:1]), evaluation_rows=8)
    found = prepared.measure(language.params, context)
    assert found.values["accuracy"] == pytest.approx(scores["acc"])
    assert found.values["accuracy_norm"] == pytest.approx(scores["acc_norm"])
    gold = [json.loads(line)["gold"] for line in rows.read_text().splitlines()]
    expected = [some[right] for some, right in zip(likelihoods(other), gold, strict=True)]
    np.testing.assert_allclose(found.columns["log_probability"], expected, atol=1e-4)

    # And directly from torch's logits.
    for number, (prompt, choices) in enumerate(zip(*prepared.encoded.tokens, strict=True)):
        following = choices[gold[number]]
        with torch.no_grad():
            logits = theirs.model(torch.tensor([[*prompt, *following]])).logits[0].float()
        scores_of_all = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        direct = scores_of_all.gather(1, torch.tensor(following)[:, None]).sum()
        assert found.columns["log_probability"][number] == pytest.approx(float(direct), abs=1e-4)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=some, idx=number)
        for number, some in enumerate(arguments)
    ]


STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "


def test_single_requests_are_answered_alike(ours: Any, theirs: Any) -> None:
    pairs = requests(
        "loglikelihood",
        ("Once upon a time", ", there"),
        ("Once upon a time, ", "there was"),
        ("", "Lily"),
        ("Once upon a time", " zebra"),
        (STORY * 16, "She saw a big, red ball."),  # longer than the model reads
    )
    for mine, their in zip(
        ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True), strict=True
    ):
        assert mine[0] == pytest.approx(their[0], abs=1e-4, rel=1e-5)
        assert mine[1] == bool(their[1])


def test_rolling_likelihoods_are_alike(ours: Any, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # With its own start tokens it would read two of them, and predict the second.
    monkeypatch.setattr(theirs, "add_bos_token", False)
    # It leaves the last token of a window without a position.
    monkeypatch.setattr(theirs, "_max_length", ours.max_length - 1)
    texts = requests("loglikelihood_rolling", (STORY,), ("The end.",), (STORY * 30,))
    mine, their = ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    np.testing.assert_allclose(mine, np.ravel(their), rtol=1e-5)


def test_generation_stops_at_the_same_text(ours: Any, theirs: Any) -> None:
    short = {"until": ["."], "max_gen_toks": 40, "do_sample": False}
    long = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    asked = requests(
        "generate_until",
        ("Once upon a time", short),
        (STORY, long),
        ("One day, a big", short),
    )
    mine, their = ours.generate_until(asked), theirs.generate_until(asked, disable_tqdm=True)
    assert [text.strip() for text in mine] == [text.strip() for text in their]
    assert all(mine)
    assert "." not in mine[0] + mine[2]
