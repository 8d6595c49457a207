"""What flags stand for: rows, and a model that reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import models
from bilevel.data import (
    PreparedSets,
    Row,
    Template,
    Tokenizer,
    check_vocabulary,
    get_template,
    load_corpus,
    load_text_corpus,
    load_tokenizer,
    prepare_sets,
    prepare_text_sets,
    read_sets,
    read_text_sets,
    text_tokenizer_for,
    tokenizer_for,
)
from bilevel.errors import InputError
from bilevel.layout import AXIS, Layout, data_layout
from bilevel.model import Model, as_model
from bilevel.runs.job import Record
from bilevel.runs.timing import part
from bilevel.schedule import BatchPlan, packing_notice
from experiments.options import (
    CorpusOptions,
    DataOptions,
    LoraOptions,
    ModelOptions,
    TextCorpusOptions,
    TextOptions,
)
from models.errors import ModelError

REFUSALS = (ModelError,)
"""How `models` refuses bad input."""

_ALL_PARAMETERS = LoraOptions()
_FLAGS = {"pool": "train", "validation": "valid", "test": "test"}
_KNOWN_AS = {
    "pool": "the training rows (--train)",
    "validation": "the trusted rows (--valid)",
    "test": "the held-out rows (--test)",
    "model": "the model (--model)",
}

Read = TypeVar("Read")


class Inputs(NamedTuple):
    """What a run starts from.

    Attributes:
        data: the data sets.
        model: the model's functions.
        language: the model itself.
        layout: the devices that it lies on.
    """

    data: PreparedSets
    model: Model
    language: models.LanguageModel
    layout: Layout


def load_rows(
    data: DataOptions,
    corpus: CorpusOptions,
    model: ModelOptions,
    seed: int,
    lora: LoraOptions = _ALL_PARAMETERS,
) -> Inputs:
    """Loads instruction rows and a model that reads them, cheapest checks first.

    Raises:
        InputError: flags that do not fit together, or unusable rows or tokenizer.
        ModelError: an unusable model folder, or an adapter that does not fit it.
    """

    def read() -> Any:
        if data.train is None:
            return load_corpus(seed, corpus.rows, corpus.valid, corpus.test, corpus.shares)
        return read_sets(data.train, data.valid or "", data.test)

    def prepare(sets: Any, tokenizer: Tokenizer, max_length: int) -> PreparedSets:
        return prepare_sets(
            **sets._asdict(),
            tokenizer=tokenizer,
            template=data.template,
            max_length=max_length,
            max_rejected=data.max_rejected,
            truncation=data.truncation,
            targets=data.targets,
        )

    def train_tokenizer(sets: Any) -> Tokenizer:
        return tokenizer_for(sets.pool, data.template, model.vocab_size)

    return _load(data, model, lora, seed, read, train_tokenizer, prepare)


def load_documents(
    data: TextOptions,
    corpus: TextCorpusOptions,
    model: ModelOptions,
    seed: int,
    lora: LoraOptions = _ALL_PARAMETERS,
) -> Inputs:
    """Loads documents, passages and a model that reads them; as `load_rows`."""

    def read() -> Any:
        if data.train is None:
            return load_text_corpus(seed, corpus.rows, corpus.valid, corpus.test, corpus.shares)
        files = [file.strip() for file in data.train.split(",")]
        return read_text_sets(files, data.valid or "", data.test, separator=data.separator, seed=seed)

    def prepare(sets: Any, tokenizer: Tokenizer, max_length: int) -> PreparedSets:
        return prepare_text_sets(
            **sets._asdict(), tokenizer=tokenizer, max_length=max_length, max_rejected=data.max_rejected
        )

    def train_tokenizer(sets: Any) -> Tokenizer:
        return text_tokenizer_for(sets.pool, model.vocab_size)

    return _load(data, model, lora, seed, read, train_tokenizer, prepare)


def _load(
    data: DataOptions | TextOptions,
    model: ModelOptions,
    lora: LoraOptions,
    seed: int,
    read: Callable[[], Read],
    train_tokenizer: Callable[[Read], Tokenizer],
    prepare: Callable[[Read, Tokenizer, int], PreparedSets],
) -> Inputs:
    _check(data, model, lora, seed)
    adapter, found = lora.settings, None
    if model.model is not None:
        try:
            found = models.find(model.model, lora=adapter, merge=lora.merge)
        except ModelError as error:
            raise ModelError(f"{error}: --model FOLDER") from None if "--" not in str(error) else error
    with part("reading rows"):
        sets = read()
    given = None if model.tokenizer is None else load_tokenizer(model.tokenizer)
    if found is not None:
        assert found.folder is not None  # of a folder, or of a name on the hub
        tokenizer = given or load_tokenizer(found.folder)
        max_length = min(data.max_length, found.config.max_positions)
    else:
        tokenizer, max_length = given or train_tokenizer(sets), data.max_length
        config = models.small(
            len(tokenizer.get_vocab()),
            model.width,
            model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            mlp_width=model.mlp_width,
            max_length=max_length,
        )
        found = models.find(config, lora=adapter, merge=lora.merge)
    check_vocabulary(tokenizer, found.config.vocab_size)
    with part("encoding rows"):
        prepared = prepare(sets, tokenizer, max_length)
    layout = data_layout()
    with part("reading the model"):
        language = models.load(
            found,
            lora=adapter,
            merge=lora.merge,
            dtype=model.dtype,
            attention=model.attention,
            remat=model.remat,
            tokenizer=tokenizer,
            seed=seed,
            mesh=layout.mesh,
            shard_rules={"width": AXIS} if model.shard else None,
        )
    return Inputs(prepared, as_model(language), language, layout)


def _check(data: DataOptions | TextOptions, model: ModelOptions, lora: LoraOptions, seed: int) -> None:
    if seed < 0:
        raise InputError(f"--seed {seed} is negative; give 0 or more")
    if lora.chosen and not lora.merge and model.model is None:
        raise InputError("an adapter needs its model: name one with --model, or write both with --merge")
    if data.train is None and (data.valid is not None or data.test is not None):
        raise InputError("--valid and --test go with --train; without it the run uses the embedded corpus")
    if data.train is not None and data.valid is None:
        raise InputError("--train needs trusted rows for the upper level: name a file of them with --valid")


def record_of(experiment: str, config: Any, inputs: Inputs, plan: BatchPlan, **also: str) -> Record:
    """What the run's folder says of the run.

    Args:
        experiment: its name.
        config: its configuration, with `preset`, `seed`, `data` and `run`.
        inputs: rows and model.
        plan: how batches are cut.
        **also: fingerprints of what else the run depends on.
    """
    data = inputs.data
    packing = packing_notice(data["pool"], data["validation"], plan, config.seed, inputs.layout)
    sources = {name: getattr(config.data, flag) for name, flag in _FLAGS.items()}
    return Record(
        experiment,
        config.preset,
        config,
        sources={name: "embedded corpus" if file is None else str(file) for name, file in sources.items()},
        model="" if config.model.model is None else str(config.model.model),
        prompt=_prompt(data.template),
        notices=tuple(line for line in (*data.notices, inputs.language.described, packing) if line),
        rejected=data.rejected,
        also=also,
        known_as=_KNOWN_AS,
        proceed=f"python -m experiments.{experiment} --resume {{folder}}",
        wandb=config.run.wandb,
    )


def _prompt(name: str) -> str:
    """How prompts are worded, "" where the tokenizer's chat template words them, and for plain text."""
    if name in ("", "chat"):
        return ""
    template = get_template(name)
    return template.prompt(Row("", "{instruction}", "{input}", "")) if isinstance(template, Template) else ""
