"""From flags to rows, tokenizer and model, with every check that can come before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

import models
from bilevel.core import Batch, OutputLoss, RowLosses
from bilevel.data import (
    ChatTemplate,
    ReadRows,
    Template,
    Tokenizer,
    check_vocabulary,
    choose_template,
    load_tokenizer,
    read_rows,
    train_tokenizer,
)
from bilevel.data.corpus import make_corpus
from bilevel.data.sets import PreparedSets, prepare_sets
from bilevel.errors import InputError
from bilevel.layout.devices import AXIS, data_mesh
from bilevel.objectives import exact_matches, response_losses, response_losses_of_logits
from bilevel.runs.timing import part
from bilevel.schedule import BatchPlan, packing_notice
from experiments.options import CorpusOptions, DataOptions, LoraOptions, ModelOptions
from experiments.tuned_model import (
    Compute,
    TunedModel,
    begin_adapter,
    compute_of,
    find_model,
    load_model,
    random_config,
)
from experiments.user_objective import Model

_ALL_PARAMETERS = LoraOptions()
_VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
_TEST_SPLITS = ("test",)


@dataclass(frozen=True)
class Inputs:
    """What a run starts from."""

    sets: PreparedSets
    tokenizer: Tokenizer
    model: TunedModel
    compute: Compute
    row_losses: Callable[[Any, Batch], RowLosses]
    """`(inner, batch) -> RowLosses`, with every derivative."""
    first_order: Callable[[Any, Batch], RowLosses]
    """The same with values and gradients alone, by the device's fastest kernels."""
    evaluate: Callable[[Any, Batch], tuple[RowLosses, jax.Array]]
    """`(inner, batch) -> (row losses, exact matches)`."""
    template: str = ""
    """Name of the wording around the rows; "" for plain text."""

    @property
    def objective_model(self) -> Model:
        """What an upper objective of the user's own may ask, with values and gradients."""
        return Model(
            self.first_order,
            partial(self.model.token_scores, compute=self.compute, attention=self.compute.first_order),
            partial(self.model.logits, compute=self.compute, attention=self.compute.first_order),
            self.model.config,
            self.tokenizer,
            self.sets.encoded["validation"].rows,
        )

    @property
    def output_losses(self) -> OutputLoss:
        """`row_losses` with the logits as outputs, all of them at once, for Gauss-Newton products."""
        logits = partial(self.model.logits, compute=self.compute, attention=self.compute.forward)
        return response_losses_of_logits(logits, models.scores_of_logits)

    @property
    def params(self) -> Any:
        """The inner variables that every method starts from: all parameters, or an adapter."""
        return self.model.start


def load_inputs(
    data: DataOptions,
    corpus: CorpusOptions,
    model: ModelOptions,
    seed: int,
    lora: LoraOptions = _ALL_PARAMETERS,
) -> Inputs:
    """Loads everything that a run starts from, cheapest checks first.

    Raises:
        InputError: flags that do not fit together, or unusable rows or tokenizer.
        ModelError: an unusable model folder, or an adapter that does not fit it.
    """
    if seed < 0:
        raise InputError(f"--seed {seed} is negative; give 0 or more")
    if lora.chosen and not lora.merge and model.model is None:
        raise InputError("an adapter needs its model: name one with --model, or write both with --merge")
    found = find_model(model)
    if found is not None:
        begin_adapter(lora, found[1], seed)
    with part("reading rows"):
        pool, validation, test = _read_sets(data, corpus, seed)
    if found is not None:
        source, config = found
        tokenizer = load_tokenizer(model.tokenizer or source)
        template, chosen = choose_template(data.template, pool.rows, tokenizer)
        max_length = min(data.max_length, config.max_positions)
    else:
        given = load_tokenizer(model.tokenizer) if model.tokenizer else None
        template, chosen = choose_template(data.template, pool.rows, given)
        tokenizer = given or train_tokenizer(_texts(template, pool), model.vocab_size)
        max_length = data.max_length
        config = random_config(model, len(tokenizer.get_vocab()), max_length)
    check_vocabulary(tokenizer, config.vocab_size)
    with part("encoding rows"):
        sets = prepare_sets(
            pool._replace(notices=(*pool.notices, chosen) if chosen else pool.notices),
            validation,
            test,
            tokenizer,
            template,
            max_length,
            data.max_rejected,
            data.truncation,
            data.targets,
        )
    mesh = data_mesh()
    length = max(rows.tokens.shape[1] for rows in sets.encoded.values())
    compute = compute_of(model, config, length, mesh.shape[AXIS])
    with part("reading the model"):
        tuned = load_model(model, lora, found, config, mesh, seed)
    if tuned.described:
        sets = replace(sets, notices=(*sets.notices, tuned.described))
    return replace(inputs_of(sets, tokenizer, tuned, compute), template=template.name)


def with_packing_notice(inputs: Inputs, plan: BatchPlan, seed: int) -> Inputs:
    """Returns the same inputs with a line on how their batches are packed."""
    sets = inputs.sets
    notice = packing_notice(sets.encoded["pool"], sets.encoded["validation"], plan, seed, data_mesh())
    return replace(inputs, sets=replace(sets, notices=(*sets.notices, notice))) if notice else inputs


def inputs_of(sets: PreparedSets, tokenizer: Tokenizer, model: TunedModel, compute: Compute) -> Inputs:
    """Returns what a run starts from, given its rows and its model."""
    fast, safe = (
        partial(model.token_scores, compute=compute, attention=attention)
        for attention in (compute.first_order, compute.forward)
    )
    row_losses = response_losses(safe)
    # One function where there is one path, so that it is compiled once.
    first_order = row_losses if compute.first_order == compute.forward else response_losses(fast)
    return Inputs(sets, tokenizer, model, compute, row_losses, first_order, exact_matches(fast))


def _texts(template: Template | ChatTemplate, pool: ReadRows) -> list[str]:
    assert isinstance(template, Template)  # chat templates belong to tokenizers that are there already
    return [text for row in pool.rows for turn in template.texts(row) for text in turn]


def _read_sets(
    data: DataOptions, corpus: CorpusOptions, seed: int
) -> tuple[ReadRows, ReadRows, ReadRows | None]:
    if data.train is not None:
        if data.valid is None:
            raise InputError(
                "--train needs trusted rows for the upper level: name a file of them with --valid"
            )
        train, valid = read_rows(data.train), read_rows(data.valid, _VALIDATION_SPLITS)
        return train, valid, read_rows(data.test, _TEST_SPLITS) if data.test is not None else None
    if data.valid is not None or data.test is not None:
        raise InputError("--valid and --test go with --train; without it the run uses the embedded corpus")
    made = make_corpus(seed, corpus.rows, corpus.valid, corpus.test, corpus.shares)
    return ReadRows(made.train, ()), ReadRows(made.valid, ()), ReadRows(made.test, ())
