"""From flags to documents, passages, tokenizer and model: what a run on plain text starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import tyro

from bilevel.data import (
    EncodedRows,
    Encoding,
    ReadRows,
    Rejected,
    Row,
    check_rejected,
    check_vocabulary,
    encode_documents,
    encode_passages,
    load_tokenizer,
    read_documents,
    read_passages,
    source_of,
    train_tokenizer,
)
from bilevel.data.corpus.text import TextShares, make_text_corpus
from bilevel.data.documents import Separator
from bilevel.data.sets import PreparedSets
from bilevel.errors import InputError
from bilevel.layout.devices import AXIS, data_mesh
from bilevel.runs.timing import part
from experiments.inputs import Inputs, inputs_of
from experiments.options import LoraOptions, ModelOptions
from experiments.tuned_model import compute_of, find_model, load_model, random_config

_TOKENIZER_DOCUMENTS = 20_000
"""Documents that a tokenizer is learned from; more hardly change it."""


@dataclass(frozen=True)
class TextOptions:
    """Which text: files of your own, or (without --train) the embedded corpus as text of mixed sources.

    Attributes:
        train: Documents to weight, from one file or several with commas between them, each a source of its own: .txt
            files (documents stand apart by <|endoftext|> or blank lines), or whatever holds rows with a column text.
        valid: Passages whose last word the upper level wants to be told, needed with --train: rows with the columns
            context and continuation (LAMBADA's), or text, whose last word is cut off. Without --test one half of them
            goes to the upper level, the other to the final table.
        test: Passages for the final table, in the same form.
        separator: What stands between the documents of a .txt file; auto is <|endoftext|> where the file holds it, else
            blank lines.
        max_length: Most tokens of a row: longer documents are cut into pieces of about equal length, longer passages
            lose their beginning.
        max_rejected: Largest share of a file's rows that may be unusable before the run refuses it.
    """

    train: Annotated[str | None, tyro.conf.arg(metavar="FILE,FILE,...")] = None
    valid: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    test: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    separator: Separator = "auto"
    max_length: int = 128
    max_rejected: float = 0.5


@dataclass(frozen=True)
class TextCorpusOptions:
    """The embedded corpus as text, generated from the seed; used without --train.

    Attributes:
        rows: Documents.
        valid: Passages for the upper level.
        test: Passages for the final table.
    """

    rows: int = 4000
    valid: int = 128
    test: int = 512
    shares: TextShares = field(default_factory=TextShares)


def load_text_inputs(data: TextOptions, corpus: TextCorpusOptions, model: ModelOptions, seed: int) -> Inputs:
    """Loads everything that a run on plain text starts from, cheapest checks first.

    Raises:
        InputError: flags that do not fit together, or unusable text or tokenizer.
        ModelError: an unusable model folder.
    """
    if seed < 0:
        raise InputError(f"--seed {seed} is negative; give 0 or more")
    found = find_model(model)
    with part("reading rows"):
        pool, validation, test = _read_sets(data, corpus, seed)
    if found is not None:
        source, config = found
        tokenizer = load_tokenizer(model.tokenizer or source)
        max_length = min(data.max_length, config.max_positions)
    else:
        texts = [row.output for row in pool.rows[:_TOKENIZER_DOCUMENTS]]
        given = load_tokenizer(model.tokenizer) if model.tokenizer else None
        tokenizer = given or train_tokenizer(texts, model.vocab_size)
        max_length = data.max_length
        config = random_config(model, len(tokenizer.get_vocab()), max_length)
    check_vocabulary(tokenizer, config.vocab_size)
    with part("encoding rows"):
        found_pool = encode_documents(pool.rows, tokenizer, max_length)
        passages = {
            name: (read, encode_passages(read.rows, tokenizer, max_length))
            for name, read in (("validation", validation), ("test", test))
        }
        sets = _prepared({"pool": (pool, found_pool), **passages}, data.max_rejected)
    mesh = data_mesh()
    with part("reading the model"):
        tuned = load_model(model, LoraOptions(), found, config, mesh, seed)
    length = max(rows.tokens.shape[1] for rows in sets.encoded.values())
    return inputs_of(sets, tokenizer, tuned, compute_of(model, config, length, mesh.shape[AXIS]))


def _read_sets(
    data: TextOptions, corpus: TextCorpusOptions, seed: int
) -> tuple[ReadRows, ReadRows, ReadRows]:
    if data.train is None:
        if data.valid is not None or data.test is not None:
            raise InputError(
                "--valid and --test go with --train; without it the run uses the embedded corpus"
            )
        made = make_text_corpus(seed, corpus.rows, corpus.valid, corpus.test, corpus.shares)
        return ReadRows(made.train, ()), ReadRows(made.valid, ()), ReadRows(made.test, ())
    if data.valid is None:
        raise InputError("--train needs passages for the upper level: name a file of them with --valid")
    pool = _joined([read_documents(file.strip(), data.separator) for file in data.train.split(",")])
    validation = read_passages(data.valid, data.separator)
    if data.test is not None:
        return pool, validation, read_passages(data.test, data.separator)
    upper, table = _halves(validation, seed)
    return pool, upper, table


def _joined(files: list[ReadRows]) -> ReadRows:
    """Documents of several files, in their order."""
    rows = tuple(row for read in files for row in read.rows)
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise InputError(f"two files give a document the id {row.id}; give the files different names")
        seen.add(row.id)
    rejected = tuple(item for read in files for item in read.rejected)
    return ReadRows(rows, rejected, tuple(notice for read in files for notice in read.notices))


def _halves(read: ReadRows, seed: int) -> tuple[ReadRows, ReadRows]:
    """Passages in two halves that share none: passages that stand twice go to the same half."""
    twins: dict[tuple[str, ...], list[Row]] = {}
    for row in read.rows:
        twins.setdefault(row.pair_key, []).append(row)
    if len(twins) < 2:
        raise InputError(
            "one passage cannot be split into a half for the upper level and one for the table; add more"
        )
    groups = list(twins.values())
    order = np.random.default_rng([seed, 1]).permutation(len(groups))
    first = [row for place in order[: len(groups) // 2] for row in groups[place]]
    second = [row for place in order[len(groups) // 2 :] for row in groups[place]]
    notice = (
        f"{len(read.rows)} passages are split in two by the seed: {len(first)} for the upper level, {len(second)} for "
        "the final table, none in both"
    )
    return ReadRows(tuple(first), read.rejected, (*read.notices, notice)), ReadRows(tuple(second), ())


def _prepared(sets: dict[str, tuple[ReadRows, Encoding]], max_rejected: float) -> PreparedSets:
    encoded: dict[str, EncodedRows] = {}
    rejected: list[Rejected] = []
    notices: list[str] = []
    for name, (read, found) in sets.items():
        total = len(read.rows) + len(read.rejected)
        left_out = (*read.rejected, *found.rejected)
        check_rejected(left_out, total, max_rejected)
        encoded[name] = found.encoded
        rejected += left_out
        notices += read.notices
        if left_out:
            reasons = ", ".join(sorted({item.reason for item in left_out}))
            notices.append(
                f"{name}: {len(left_out)} of {total} rows rejected ({reasons}); see rejected.jsonl"
            )
        if found.truncated.prompts:
            cut = found.truncated.prompts
            notices.append(
                f"{name}: {len(cut)} passages lost their beginning to the length limit (first: {cut[0]})"
            )
    pieces, documents = len(encoded["pool"]), len(sets["pool"][0].rows)
    if pieces > documents:
        notices.append(
            f"pool: {documents} documents in {pieces} pieces of at most {encoded['pool'].tokens.shape[1]} tokens"
        )
    sources = [source_of(row) for row in encoded["pool"].rows]
    counts = ", ".join(f"{name} {sources.count(name)}" for name in sorted(set(sources)))
    notices.append(f"pool: {counts}")
    shared = {row.pair_key for row in encoded["validation"].rows} & {
        row.pair_key for row in encoded["test"].rows
    }
    if shared:
        notices.append(
            f"{len(shared)} passages stand in both --valid and --test; the final table is too good by as much"
        )
    return PreparedSets(encoded, tuple(rejected), tuple(notices))
