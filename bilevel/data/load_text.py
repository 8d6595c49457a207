"""From documents and passages to the data sets of a run on plain text."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from bilevel.data.corpus.text import TextShares, make_text_corpus
from bilevel.data.documents import Separator, read_documents, read_passages, source_of
from bilevel.data.encode import EncodedRows
from bilevel.data.encode_text import encode_documents, encode_passages
from bilevel.data.files import ReadRows
from bilevel.data.rejected import check_rejected, rejected_notice
from bilevel.data.rows import Rejected, Row
from bilevel.data.sets import PreparedSets, ReadSets
from bilevel.data.tokenizer import Tokenizer, train_tokenizer
from bilevel.data.usage import tokenizer_notices
from bilevel.errors import InputError

_TOKENIZER_DOCUMENTS = 20_000
"""Documents that a tokenizer is learned from; more hardly change it."""

Place = str | os.PathLike[str]


def load_text(
    train: Place | Sequence[Place],
    valid: Place,
    test: Place | None = None,
    *,
    tokenizer: Tokenizer,
    max_length: int = 512,
    separator: Separator = "auto",
    max_rejected: float = 0.5,
    seed: int = 0,
) -> PreparedSets[EncodedRows]:
    r"""The data sets of a run on plain text: documents to weight, passages whose last word is to be told.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from bilevel.data import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stories, passages = Path(folder) / "stories.txt", Path(folder) / "passages.txt"
    ...     _ = stories.write_text("A cat sat.\n\nA dog ran away.")
    ...     _ = passages.write_text("The cat was black.\n\nThe dog was brown.")
    ...     data = load_text(stories, passages, tokenizer=train_tokenizer(["a"], 259), max_length=32)
    >>> {name: len(rows) for name, rows in data.items()}
    {'pool': 2, 'validation': 1, 'test': 1}

    Args:
        train: one or several files of documents.
        valid: passages for the upper level; without `test` one half of them, by the seed, is held out.
        test: passages that are held out.
        tokenizer: the model's, a fast one with an end token.
        max_length: the most tokens of a row: longer documents are cut into pieces, longer passages lose their
            beginning.
        separator: what stands between the documents of a text file.
        max_rejected: largest share of a file's rows that may be unusable.
        seed: chooses the halves.

    Raises:
        InputError: something cannot be read or used; the message names the file, the row and the remedy.
    """
    read = read_text_sets(train, valid, test, separator=separator, seed=seed)
    return prepare_text_sets(
        **read._asdict(), tokenizer=tokenizer, max_length=max_length, max_rejected=max_rejected
    )


def read_text_sets(
    train: Place | Sequence[Place],
    valid: Place,
    test: Place | None = None,
    *,
    separator: Separator = "auto",
    seed: int = 0,
) -> ReadSets:
    r"""Documents and passages, not encoded yet; arguments as in `load_text`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "stories.txt"
    ...     _ = file.write_text("A cat sat.\n\nA dog ran away.")
    ...     read_text_sets(file, file).pool.rows[1].output
    'A dog ran away.'
    """
    files = [train] if isinstance(train, str | os.PathLike) else train
    pool = _joined([read_documents(file, separator) for file in files])
    validation = read_passages(valid, separator)
    if test is not None:
        return ReadSets(pool, validation, read_passages(test, separator))
    return ReadSets(pool, *_halves(validation, seed))


def load_text_corpus(
    seed: int, documents: int = 4000, valid: int = 128, test: int = 512, shares: TextShares | None = None
) -> ReadSets:
    """The embedded corpus as text, not encoded yet; arguments as in `make_text_corpus`.

    >>> sets = load_text_corpus(seed=0, documents=20, valid=5, test=5)
    >>> sets.pool.rows[0].form, sets.validation.rows[0].form
    ('text', 'passage')
    """
    made = make_text_corpus(seed, documents, valid, test, TextShares() if shares is None else shares)
    return ReadSets(ReadRows(made.train, ()), ReadRows(made.valid, ()), ReadRows(made.test, ()))


def text_tokenizer_for(pool: ReadRows, vocab_size: int = 640) -> Tokenizer:
    """A tokenizer that is trained on documents, for models that have none yet.

    >>> len(text_tokenizer_for(load_text_corpus(seed=0, documents=20, valid=5, test=5).pool, 280).get_vocab())
    280
    """
    return train_tokenizer([row.output for row in pool.rows[:_TOKENIZER_DOCUMENTS]], vocab_size)


def prepare_text_sets(
    *,
    pool: ReadRows,
    validation: ReadRows,
    test: ReadRows | None = None,
    tokenizer: Tokenizer,
    max_length: int = 512,
    max_rejected: float = 0.5,
) -> PreparedSets[EncodedRows]:
    """Encodes documents and passages, and says what was cut, left out or shared.

    >>> read = load_text_corpus(seed=0, documents=20, valid=5, test=5)
    >>> sets = prepare_text_sets(**read._asdict(), tokenizer=text_tokenizer_for(read.pool, 280), max_length=64)
    >>> {name: len(rows) for name, rows in sets.items()}
    {'pool': 21, 'validation': 5, 'test': 5}

    Args:
        pool: documents.
        validation: passages for the upper level.
        test: passages that are held out, or None.
        tokenizer: a fast tokenizer with an end token.
        max_length: the most tokens a row may have.
        max_rejected: largest share of a set that may be left out.

    Raises:
        InputError: too many rows of a set are rejected, or none is left.
    """
    read_sets = {"pool": pool, "validation": validation} | ({} if test is None else {"test": test})
    encoded: dict[str, EncodedRows] = {}
    rejected: list[Rejected] = []
    notices: list[str] = []
    for name, read in read_sets.items():
        found = (encode_documents if name == "pool" else encode_passages)(read.rows, tokenizer, max_length)
        total = len(read.rows) + len(read.rejected)
        left_out = (*read.rejected, *found.rejected)
        check_rejected(left_out, total, max_rejected)
        encoded[name] = found.encoded
        rejected += left_out
        notices += [*read.notices, *rejected_notice(name, left_out, total)]
        if name == "pool":
            notices += tokenizer_notices(read.rows, tokenizer)
        if found.truncated.prompts:
            cut = found.truncated.prompts
            notices.append(
                f"{name}: {len(cut)} passages lost their beginning to the length limit (first: {cut[0]})"
            )
    notices += _pool_notices(encoded["pool"], len(pool.rows))
    if test is not None:
        notices += _shared_notice(encoded["validation"], encoded["test"])
    return PreparedSets(sets=encoded, rejected=tuple(rejected), notices=tuple(notices))


def _pool_notices(pool: EncodedRows, documents: int) -> list[str]:
    notices = []
    if len(pool) > documents:
        notices.append(
            f"pool: {documents} documents in {len(pool)} pieces of at most {pool.tokens.shape[1]} tokens"
        )
    sources = [source_of(row) for row in pool.rows]
    counts = ", ".join(f"{name} {sources.count(name)}" for name in sorted(set(sources)))
    return [*notices, f"pool: {counts}"]


def _shared_notice(validation: EncodedRows, test: EncodedRows) -> list[str]:
    shared = {row.pair_key for row in validation.rows} & {row.pair_key for row in test.rows}
    if not shared:
        return []
    return [
        f"{len(shared)} passages stand in both the validation and the test set; results on the test set are too good "
        "by as much"
    ]


def _joined(files: Sequence[ReadRows]) -> ReadRows:
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
