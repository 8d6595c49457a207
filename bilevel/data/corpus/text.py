"""The embedded corpus as plain text from sources of different worth, the way a crawl of the web is mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from bilevel.data.corpus.build import Corpus, make_corpus
from bilevel.data.corpus.kind import shuffled
from bilevel.data.corpus.shares import Shares, part
from bilevel.data.rows import Row
from bilevel.errors import InputError

GOOD = ("textbook", "handbook")
"""Sources whose documents are right: about common things, and about rare ones."""

BOILERPLATE = (
    "This site uses cookies. Click accept to go on.",
    "Sign up for our letter and save today.",
    "All rights reserved. Read our terms of use.",
    "Share this page with your friends.",
    "You must log in to leave a comment.",
    "Page not found. Go back to the start.",
)


@dataclass(frozen=True)
class TextShares:
    """Which share of the documents comes from which source; the rest is the textbook.

    Attributes:
        forum: documents whose last word is wrong: the answer to another question of the same kind.
        snippet: documents that break off before their end.
        thread: documents whose end belongs elsewhere.
        scan: documents whose words stand in random order.
        boilerplate: a few sentences that every page of a site repeats.
        handbook: right documents about rare words and larger numbers.

    Raises:
        InputError: a number outside 0 .. 1, or shares that sum to more than 1.
    """

    forum: float = 0.2
    snippet: float = 0.1
    thread: float = 0.1
    scan: float = 0.1
    boilerplate: float = 0.1
    handbook: float = 0.05

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise InputError(f"share {name} is {share}; give a number from 0 to 1")
        if sum(vars(self).values()) > 1 + 1e-6:
            raise InputError(
                f"shares of sources sum to {sum(vars(self).values()):.4g}; lower them to at most 1"
            )


def make_text_corpus(
    seed: int,
    documents: int = 4000,
    valid: int = 128,
    test: int = 512,
    shares: TextShares = TextShares(),
) -> Corpus:
    """Short documents from sources of different worth, and passages whose last word is to be told.

    A document is a question and its answer as running text; its column `source` says where it comes from, and its
    label `fault` names what is wrong with it. Passages are right, and none of them stands in a document.

    Args:
        seed: chooses everything; the same on every machine.
        documents: training documents, of the form "text".
        valid: passages for the upper level.
        test: passages for the final table.
        shares: what the documents are made of.

    Returns:
        The sets, with the ids of `make_corpus`.

    Raises:
        InputError: no documents or passages in a set, or more than there are questions.
    """
    faults = shares.forum + shares.snippet + shares.thread
    parts = (
        {
            "wrong_answer": shares.forum / faults,
            "truncated": shares.snippet / faults,
            "off_topic": shares.thread / faults,
        }
        if faults
        else {}
    )
    made = make_corpus(
        seed, documents, valid, test, Shares(fault=faults, hard=shares.handbook, duplicate=0.0, **parts)
    )
    random = Random(f"text corpus {seed}")
    plain = shuffled(
        [row.id for row in made.train if not row.label("fault") and not row.label("hard")], random
    )
    scans = set(plain[: part(shares.scan, documents)])
    boilerplate = set(plain[len(scans) :][: part(shares.boilerplate, documents)])
    rows = []
    for row in made.train:
        text = _text(row)
        if row.id in scans:
            rows.append(_document(row, " ".join(shuffled(text.split(), random)), "scan", "word_order"))
        elif row.id in boilerplate:
            said = shuffled(BOILERPLATE, random)[:2]
            rows.append(_document(row, " ".join(said), "boilerplate", "boilerplate"))
        else:
            rows.append(_document(row, text, _source(row), row.label("fault")))
    return Corpus(tuple(rows), _passages(made.valid), _passages(made.test))


def _source(row: Row) -> str:
    sources = {"wrong_answer": "forum", "truncated": "snippet", "off_topic": "thread"}
    return sources.get(row.label("fault")) or ("handbook" if row.label("hard") else "textbook")


def _text(row: Row) -> str:
    return " ".join(text for text in (row.instruction, row.input, row.output) if text)


def _document(row: Row, text: str, source: str, fault: str) -> Row:
    labels = {**row.labels, "fault": fault}
    return Row(row.id, "", "", text, labels, {"source": source}, form="text")


def _passages(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Questions with all of the answer but its last word; the word is what is to be told."""
    passages = []
    for row in rows:
        before, _, word = _text(row).rstrip(" .!?").rpartition(" ")
        passages.append(replace(row, instruction=before, input="", output=word, form="passage"))
    return tuple(passages)
