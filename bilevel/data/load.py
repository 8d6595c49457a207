"""From files to the data sets of a run."""

from __future__ import annotations

import os

from bilevel.data.chat import ChatTemplate
from bilevel.data.corpus import Shares, make_corpus
from bilevel.data.encode import EncodedRows
from bilevel.data.exchange import Targets
from bilevel.data.files import ReadRows, read_rows
from bilevel.data.sets import PreparedSets, ReadSets, prepare_sets
from bilevel.data.templates import Template, choose_template
from bilevel.data.tokenizer import Tokenizer, train_tokenizer
from bilevel.data.truncation import Truncation

_VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
_TEST_SPLITS = ("test",)

Place = str | os.PathLike[str]
"""A file, a folder that holds a dataset, or a name on the hub; see `bilevel.data.sources.open_source`."""


def load(
    train: Place,
    valid: Place,
    test: Place | None = None,
    *,
    tokenizer: Tokenizer,
    max_length: int = 512,
    template: str | Template | ChatTemplate = "auto",
    truncation: Truncation = "response_first",
    targets: Targets = "all",
    max_rejected: float = 0.5,
    width: int | None = None,
) -> PreparedSets[EncodedRows]:
    r"""The data sets of a run, from files.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from bilevel.data import train_tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool, trusted = Path(folder) / "pool.csv", Path(folder) / "trusted.csv"
    ...     _ = pool.write_text("question,answer\nAdd 2 and 3.,5\nSay hello.,Hello.\n")
    ...     _ = trusted.write_text("question,answer\nAdd 1 and 3.,4\n")
    ...     data = load(pool, trusted, tokenizer=train_tokenizer(["Add 2"], 259), max_length=64)
    >>> len(data["pool"]), data["pool"].names([1]), data.notices[0]
    (2, ['pool.csv:2'], 'pool.csv: 2 rows, question/answer columns')

    Args:
        train: rows to weight, select or rewrite, named `pool` from here on.
        valid: trusted rows that the upper level is measured on; of a dataset, its split `validation`.
        test: held-out rows; of a dataset, its split `test`.
        tokenizer: the model's, a fast one with an end token.
        max_length: the most tokens a row may have.
        template: wording around the rows' texts, or its name; "auto" is the tokenizer's own chat template for
            conversations, else plain.
        truncation: what rows that are too long lose.
        targets: which responses of a conversation are learned.
        max_rejected: largest share of a file's rows that may be unusable.
        width: length T of all arrays, by default as long as each set's longest row.

    Raises:
        InputError: something cannot be read or used; the message names the file, the row and the remedy.
    """
    return prepare_sets(
        **read_sets(train, valid, test)._asdict(),
        tokenizer=tokenizer,
        template=template,
        max_length=max_length,
        max_rejected=max_rejected,
        truncation=truncation,
        targets=targets,
        width=width,
    )


def read_sets(train: Place, valid: Place, test: Place | None = None) -> ReadSets:
    """Rows of the three sets, not encoded yet; arguments as in `load`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "rows.jsonl"
    ...     _ = file.write_text('{"prompt": "Say hello.", "completion": "Hello."}')
    ...     read_sets(file, file).pool.rows[0].output
    'Hello.'
    """
    return ReadSets(
        read_rows(train),
        read_rows(valid, _VALIDATION_SPLITS),
        None if test is None else read_rows(test, _TEST_SPLITS),
    )


def load_corpus(
    seed: int, rows: int = 2000, valid: int = 128, test: int = 512, shares: Shares | None = None
) -> ReadSets:
    """The embedded corpus as rows that were read, not encoded yet; arguments as in `make_corpus`.

    >>> sets = load_corpus(seed=0, rows=20, valid=5, test=5)
    >>> len(sets.pool.rows), sets.test.rows[0].id
    (20, 'corpus-test:1')
    """
    made = make_corpus(seed, rows, valid, test, Shares() if shares is None else shares)
    return ReadSets(ReadRows(made.train, ()), ReadRows(made.valid, ()), ReadRows(made.test, ()))


def tokenizer_for(
    pool: ReadRows, template: str | Template | ChatTemplate = "auto", vocab_size: int = 640
) -> Tokenizer:
    """A tokenizer that is trained on the texts of a pool, for models that have none yet.

    >>> tokenizer = tokenizer_for(load_corpus(seed=0, rows=20, valid=5, test=5).pool, vocab_size=300)
    >>> len(tokenizer.get_vocab())
    300

    Args:
        pool: rows of the lower level.
        template: wording around them, or its name.
        vocab_size: the most tokens to have.

    Raises:
        InputError: a chat template, which only a tokenizer that is there already brings, or too few tokens.
    """
    name = template if isinstance(template, str) else template.name
    chosen, _ = choose_template(name, pool.rows, None)
    wording = template if isinstance(template, Template) else chosen
    assert isinstance(wording, Template)  # `choose_template` refuses a chat template without a tokenizer
    return train_tokenizer(
        (text for row in pool.rows for turn in wording.texts(row) for text in turn), vocab_size
    )
