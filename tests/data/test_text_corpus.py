"""The embedded corpus as text: sources of different worth, and passages that stand in none of them."""

from __future__ import annotations

from collections import Counter

import pytest

from bilevel.data.corpus.text import GOOD, TextShares, make_text_corpus
from bilevel.errors import InputError


@pytest.fixture(scope="module")
def corpus():
    return make_text_corpus(0, documents=400, valid=32, test=64)


def test_sources_have_their_shares_and_only_good_ones_have_no_fault(corpus):
    counts = Counter(row.extra["source"] for row in corpus.train)
    shares = vars(TextShares())
    assert {name: counts[name] for name in shares} == {
        name: round(400 * share) for name, share in shares.items()
    }
    assert counts["textbook"] == 400 - sum(counts[name] for name in shares)
    for row in corpus.train:
        assert (row.label("fault") == "") == (row.extra["source"] in GOOD)
        assert (row.instruction, row.form) == ("", "text")


def test_documents_are_running_text(corpus):
    by_source = {}
    for row in corpus.train:
        by_source.setdefault(row.extra["source"], row.output)
    assert all(text.strip() == text and text for text in by_source.values())
    assert len({row.output for row in corpus.train if row.extra["source"] == "boilerplate"}) < 31


def test_passages_end_before_their_last_word_and_stand_in_no_document(corpus):
    assert (len(corpus.valid), len(corpus.test)) == (32, 64)
    texts = {row.output.rstrip(" .!?") for row in corpus.train}
    for row in (*corpus.valid, *corpus.test):
        assert row.form == "passage"
        assert row.output
        assert " " not in row.output
        assert f"{row.instruction} {row.output}" not in texts


def test_the_seed_chooses(corpus):
    assert make_text_corpus(0, 400, 32, 64) == corpus
    assert make_text_corpus(1, 400, 32, 64) != corpus


def test_shares_that_cannot_be():
    with pytest.raises(InputError, match="scan is 2"):
        TextShares(scan=2)
    with pytest.raises(InputError, match=r"sum to 1\.3"):
        TextShares(forum=0.9)
    alone = make_text_corpus(0, 40, 8, 8, TextShares(0, 0, 0, 0, 0, 0))
    assert {row.extra["source"] for row in alone.train} == {"textbook"}
