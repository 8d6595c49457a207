"""The embedded corpus."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bilevel.data import PLAIN, Row, encode_rows, train_tokenizer
from bilevel.data.corpus import KINDS, Corpus, Shares, make_corpus
from bilevel.data.corpus.faults import REMARKS
from bilevel.errors import InputError


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus(0)


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, str], str]:
    """Right answer of every prompt there is."""
    examples = [example for kind in KINDS for hard in (False, True) for example in kind.examples(hard)]
    found = {(example.instruction, example.input): example.output for example in examples}
    assert len(found) == len(examples)
    return found


def with_fault(rows: tuple[Row, ...], fault: str) -> list[Row]:
    return [row for row in rows if row.label("fault") == fault]


def right(row: Row, answers: dict[tuple[str, str], str]) -> str:
    return answers[row.instruction, row.input]


def test_sets_have_the_sizes_and_ids_asked_for(corpus: Corpus) -> None:
    assert [len(rows) for rows in corpus] == [2000, 128, 512]
    assert [row.id for row in corpus.train] == [f"corpus-train:{line}" for line in range(1, 2001)]
    assert (corpus.valid[0].id, corpus.test[-1].id) == ("corpus-valid:1", "corpus-test:512")


def test_shares_are_exact(corpus: Corpus) -> None:
    faults = Counter(row.label("fault") for row in corpus.train)
    assert faults == {"": 1200, "wrong_answer": 400, "truncated": 200, "off_topic": 200}
    assert sum(row.label("hard") == "yes" for row in corpus.train) == 100
    assert sum(row.label("duplicate") != "" for row in corpus.train) == 100


@pytest.mark.parametrize("rows", [7, 50, 333])
def test_shares_are_exact_in_any_size(rows: int) -> None:
    train = make_corpus(1, rows, valid=5, test=5, shares=Shares(fault=0.29, hard=0.14, duplicate=0.28)).train
    faulty = rows * 29 // 100
    assert len(train) == rows
    assert sum(row.label("fault") != "" for row in train) == faulty
    assert len(with_fault(train, "truncated")) == len(with_fault(train, "off_topic")) == faulty // 4
    assert sum(row.label("hard") == "yes" for row in train) == rows * 14 // 100
    assert sum(row.label("duplicate") != "" for row in train) == rows * 28 // 100


def test_labels_do_not_mix(corpus: Corpus) -> None:
    for row in corpus.train:
        assert sum(row.label(name) != "" for name in ("fault", "hard", "duplicate")) <= 1


def test_rows_without_a_fault_are_right(corpus: Corpus, answers: dict[tuple[str, str], str]) -> None:
    for row in (*with_fault(corpus.train, ""), *corpus.valid, *corpus.test):
        assert row.output == right(row, answers)


def test_wrong_answers_are_answers_of_their_kind_and_wrong(
    corpus: Corpus, answers: dict[tuple[str, str], str]
) -> None:
    of_kind = {kind.name: {example.output for example in kind.examples(hard=False)} for kind in KINDS}
    for row in with_fault(corpus.train, "wrong_answer"):
        assert row.output != right(row, answers)
        assert row.output in of_kind[row.label("kind")]


def test_truncated_answers_are_strict_beginnings(corpus: Corpus, answers: dict[tuple[str, str], str]) -> None:
    for row in with_fault(corpus.train, "truncated"):
        whole = right(row, answers)
        assert whole.startswith(row.output)
        assert 0 < len(row.output.strip()) <= 2 * len(whole) // 3


def test_off_topic_answers_belong_elsewhere(corpus: Corpus, answers: dict[tuple[str, str], str]) -> None:
    family = {kind.name: kind.family for kind in KINDS}
    families: dict[str, set[str]] = {}
    for kind in KINDS:
        for example in kind.examples(hard=False):
            families.setdefault(example.output, set()).add(kind.family)
    remarks = 0
    for row in with_fault(corpus.train, "off_topic"):
        assert row.output != right(row, answers)
        remarks += row.output in REMARKS
        assert row.output in REMARKS or families[row.output] - {family[row.label("kind")]}
    assert 60 <= remarks <= 140


def test_duplicates_are_exact_twins_of_plain_clean_rows(corpus: Corpus) -> None:
    by_id = {row.id: row for row in corpus.train}
    for row in corpus.train:
        if twin_id := row.label("duplicate"):
            twin = by_id[twin_id]
            assert (row.instruction, row.input, row.output) == (twin.instruction, twin.input, twin.output)
            assert not any(twin.label(name) for name in ("fault", "hard", "duplicate"))


def test_only_twins_share_a_prompt(corpus: Corpus) -> None:
    for rows in corpus:
        originals = [row.prompt_key for row in rows if not row.label("duplicate")]
        assert len(set(originals)) == len(originals)
    prompts = [{row.prompt_key for row in rows} for rows in corpus]
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_held_out_rows_are_clean_and_hold_their_share_of_hard_ones(corpus: Corpus) -> None:
    for rows in (corpus.valid, corpus.test):
        assert all(row.label("fault") == row.label("duplicate") == "" for row in rows)
        assert sum(row.label("hard") == "yes" for row in rows) == len(rows) * 5 // 100


def test_held_out_rows_stay_when_the_training_rows_change(corpus: Corpus) -> None:
    other = make_corpus(0, rows=100, shares=Shares(fault=0.1, duplicate=0.2))
    assert other.test == corpus.test
    assert other.valid == corpus.valid


def test_many_kinds_come_evenly(corpus: Corpus) -> None:
    kinds = Counter(row.label("kind") for row in corpus.test if not row.label("hard"))
    assert len(kinds) >= 12
    assert max(kinds.values()) - min(kinds.values()) <= 2


def test_seeds_differ_and_repeat(corpus: Corpus) -> None:
    assert make_corpus(0) == corpus
    assert make_corpus(1).train != corpus.train


def test_rows_are_the_same_on_every_machine(corpus: Corpus) -> None:
    text = "\n".join(
        f"{row.id}\t{row.instruction}\t{row.input}\t{row.output}" for rows in corpus for row in rows
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "d5b8299d47a278e9"


def test_rows_are_short(corpus: Corpus) -> None:
    tokenizer = train_tokenizer(
        [text for row in corpus.train for turn in PLAIN.texts(row) for text in turn], 512
    )
    rows, rejected, truncated = encode_rows(corpus.train + corpus.test, tokenizer, PLAIN, 64)
    assert (rejected, truncated.prompts, truncated.responses) == ((), (), ())
    assert np.median(rows.lengths) < 30
    assert rows.lengths.max() < 64
    words = [len(row.output.split()) for row in corpus.train]
    assert 1 <= min(words) <= max(words) <= 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fault": 1.2}, "share fault is 1.2; give a number from 0 to 1"),
        ({"hard": -0.1}, "share hard is -0.1; give a number from 0 to 1"),
        (
            {"fault": 0.9, "hard": 0.2},
            "shares fault, hard and duplicate sum to 1.15; lower them to at most 1",
        ),
        ({"truncated": 0.5}, "parts wrong_answer, truncated and off_topic sum to 1.25; make it 1"),
    ],
)
def test_impossible_shares_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(Shares(), **change)


@pytest.mark.parametrize(
    ("sizes", "shares", "message"),
    [
        ({"rows": 0}, {}, "rows is 0; the corpus needs at least 1 row in each set"),
        ({"test": 0}, {}, "test is 0; the corpus needs at least 1 row in each set"),
        ({"rows": 50_000}, {}, r"the corpus lacks \d+ plain prompts; ask for fewer rows in its sets"),
        (
            {"rows": 1000},
            {
                "fault": 1.0,
                "wrong_answer": 0.0,
                "truncated": 1.0,
                "off_topic": 0.0,
                "hard": 0.0,
                "duplicate": 0.0,
            },
            r"only \d+ answers are long enough to be cut; lower part truncated",
        ),
        ({"rows": 10}, {"fault": 0.5, "hard": 0.3, "duplicate": 0.2}, "no plain clean row is left to repeat"),
    ],
)
def test_impossible_corpora_are_refused(
    sizes: dict[str, int], shares: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_corpus(0, **sizes, shares=Shares(**shares))


def test_no_faults_at_all() -> None:
    train = make_corpus(0, 100, 10, 10, Shares(fault=0.0, hard=0.0, duplicate=0.0)).train
    assert not any(row.label(name) for row in train for name in ("fault", "hard", "duplicate"))
