"""From flags to rows, tokenizer and model, with every check that can come before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import models
from bilevel.core import Batch, RowLosses
from bilevel.data import (
    ReadRows,
    Tokenizer,
    check_vocabulary,
    get_template,
    load_tokenizer,
    read_rows,
    train_tokenizer,
)
from bilevel.data.corpus import make_corpus
from bilevel.data.sets import PreparedSets, prepare_sets
from bilevel.errors import InputError
from bilevel.objectives import exact_matches, response_losses
from bilevel.runtime.timing import part
from experiments.options import CorpusOptions, DataOptions, ModelOptions
from models.folder import read_folder
from models.hub import local_folder

_POSITIONS = 512


@dataclass(frozen=True)
class Inputs:
    """What a run starts from."""

    sets: PreparedSets
    tokenizer: Tokenizer
    config: models.DecoderConfig
    params: Any
    source: Path | None
    """The folder that the model was read from."""
    row_losses: Callable[[Any, Batch], RowLosses]
    """`(params, batch) -> RowLosses` of this model."""
    evaluate: Callable[[Any, Batch], tuple[RowLosses, jax.Array]]
    """`(params, batch) -> (row losses, exact matches)` of this model."""


def load_inputs(data: DataOptions, corpus: CorpusOptions, model: ModelOptions, seed: int) -> Inputs:
    """Loads everything that a run starts from, cheapest checks first.

    Raises:
        InputError: flags that do not fit together, or unusable rows or tokenizer.
        ModelError: an unusable model folder.
    """
    if seed < 0:
        raise InputError(f"--seed {seed} is negative; give 0 or more")
    with part("reading rows"):
        pool, validation, test = _read_sets(data, corpus, seed)
    template = get_template(data.template)
    if model.model is not None:
        with part("reading the model"):
            source = local_folder(model.model)
            config, params = read_folder(source, dtype="float32")
        tokenizer = load_tokenizer(model.tokenizer or source)
        max_length = min(data.max_length, config.max_positions)
    else:
        source = None
        texts = [text for row in pool.rows for text in (template.prompt(row), row.output)]
        tokenizer = (
            load_tokenizer(model.tokenizer) if model.tokenizer else train_tokenizer(texts, model.vocab_size)
        )
        max_length = data.max_length
        config = models.DecoderConfig(
            vocab_size=len(tokenizer.get_vocab()),
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            mlp_width=model.mlp_width,
            max_positions=max(_POSITIONS, max_length),
            # Rows of unit length: with tied embeddings a narrow model learns far faster.
            init_std=model.width**-0.5,
        )
        params = models.init(config, jax.random.key(seed))
    check_vocabulary(tokenizer, config.vocab_size)
    with part("encoding rows"):
        sets = prepare_sets(pool, validation, test, tokenizer, template, max_length, data.max_rejected)

    def token_scores(params: Any, batch: Batch) -> models.TokenScores:
        return models.token_scores(params, batch, config)

    return Inputs(
        sets, tokenizer, config, params, source, response_losses(token_scores), exact_matches(token_scores)
    )


def _read_sets(
    data: DataOptions, corpus: CorpusOptions, seed: int
) -> tuple[ReadRows, ReadRows, ReadRows | None]:
    if data.train is not None:
        if data.valid is None:
            raise InputError(
                "--train needs trusted rows for the upper level: name a file of them with --valid"
            )
        test = read_rows(data.test) if data.test is not None else None
        return read_rows(data.train), read_rows(data.valid), test
    if data.valid is not None or data.test is not None:
        raise InputError("--valid and --test go with --train; without it the run uses the embedded corpus")
    made = make_corpus(seed, corpus.rows, corpus.valid, corpus.test, corpus.shares)
    return ReadRows(made.train, ()), ReadRows(made.valid, ()), ReadRows(made.test, ())
