"""A small random model with its tokenizer, and files of tasks for it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax

import models
from bilevel.data import train_tokenizer
from bilevel.evaluation import Reading, TaskOptions, read_tasks
from bilevel.evaluation.task import PreparedTask
from bilevel.layout import data_layout
from bilevel.model import Model, as_model
from bilevel.schedule import Context

WIDTH = 64
"""Tokens that the model reads."""


@functools.cache
def language() -> models.LanguageModel:
    tokenizer = train_tokenizer(["the cat sat on the mat", "Answer: one two three"] * 3, 290)
    config = models.DecoderConfig(
        len(tokenizer.get_vocab()),
        width=8,
        layers=1,
        heads=2,
        kv_heads=1,
        mlp_width=8,
        max_positions=WIDTH,
        init_std=0.5,
    )
    return models.load(config, tokenizer=tokenizer, seed=3)


@functools.cache
def model() -> Model:
    return as_model(language())


def context(bundle: Model | None = None, **options: Any) -> Context:
    layout = data_layout(jax.devices()[:1])
    return Context(bundle or model(), layout, **{"evaluation_rows": 4, **options})


def reading(**options: Any) -> Reading:
    return Reading(**{"tokenizer": language().tokenizer, "max_length": WIDTH, **options})


def write(folder: Path, name: str, *records: dict[str, Any]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def prepared(source: str, options: TaskOptions | None = None, **read: Any) -> PreparedTask:
    (task,) = read_tasks([source], options)
    return task.prepared(reading(**read))


QUESTIONS = (
    {"query": "the cat", "choices": ["sat on the mat", "one", "é two"], "gold": 0},
    {"query": "one two", "choices": ["three", "mat mat mat mat"], "gold": 1},
    {"query": "on", "choices": ["the", "t", "s", "o", "the mat"], "gold": 4},
)
PASSAGES = (
    {"context": "the cat sat on the", "continuation": "mat"},
    {"context": "one two", "continuation": "three"},
    {"context": "the", "continuation": "cat"},
)
ROWS = (
    {"instruction": "Say one.", "input": "", "output": "one"},
    {"instruction": "Say two.", "input": "the cat", "output": "two three"},
    {"instruction": "Say three.", "input": "", "output": "three"},
)
PROMPTS = (
    {"prompt": "one", "label": "safe"},
    {"prompt": "two", "label": "unsafe"},
    {"prompt": "the", "label": "safe"},
)
