"""From files to the data sets of a run."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from bilevel.data import (
    ALPACA,
    Dataset,
    PreparedSets,
    Tokenizer,
    load,
    load_corpus,
    load_text,
    load_text_corpus,
    make_corpus,
    make_digits,
    prepare_sets,
    prepare_text_sets,
    read_sets,
    text_tokenizer_for,
    tokenizer_for,
    train_tokenizer,
)
from bilevel.data.corpus import Shares
from bilevel.errors import InputError
from tests.data.chats import CHATML, chatty


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    return train_tokenizer(["a"], 259)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = {
        "train": [("Add 1 and 2.", "3"), ("Say hi.", "Hi."), ("Say nothing.", ""), ("Count.", "1 2 3")],
        "valid": [("Add 1 and 2.", "3"), ("Add 2 and 2.", "4")],
        "test": [("Count. ", "1, 2, 3")],
    }
    paths = {}
    for name, pairs in rows.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs]
        paths[name].write_text("\n".join(lines))
    return paths


def test_files_become_data_sets_by_name(files: dict[str, Path], bytewise: Tokenizer) -> None:
    sets = load(**files, tokenizer=bytewise, max_length=64)
    assert list(sets) == ["pool", "validation", "test"]
    assert [len(rows) for rows in sets.values()] == [3, 2, 1]
    assert all(isinstance(rows, Dataset) for rows in sets.values())
    assert sets["pool"].names(range(3)) == ["train.jsonl:1", "train.jsonl:2", "train.jsonl:4"]
    assert [item.id for item in sets.rejected] == ["train.jsonl:3"]
    assert sets.template == "plain"
    said = "\n".join(sets.notices)
    for line in (
        "train.jsonl: 4 rows, prompt/completion columns",
        "pool: 1 of 4 rows rejected (empty response)",
        "1 of 2 validation rows share their prompt with a training row, 1 of them the response too",
        "1 of 1 test rows share their prompt with a training row",
    ):
        assert line in said


def test_what_was_asked_for_is_done(files: dict[str, Path], bytewise: Tokenizer) -> None:
    del files["test"]
    sets = load(**files, tokenizer=bytewise, max_length=500, template="alpaca", width=512)
    assert (list(sets), sets.template) == (["pool", "validation"], "alpaca")
    assert {rows.tokens.shape[1] for rows in sets.values()} == {512}
    same = prepare_sets(**read_sets(**files)._asdict(), tokenizer=bytewise, template=ALPACA, width=512)
    assert {name: rows.fingerprint for name, rows in same.items()} == {
        name: rows.fingerprint for name, rows in sets.items()
    }
    cut = load(**files, tokenizer=bytewise, max_length=8)
    assert "rows lost part of their prompt" in "\n".join(cut.notices)
    with pytest.raises(InputError, match="1 of 4 rows were rejected"):
        load(**files, tokenizer=bytewise, max_rejected=0.1)
    with pytest.raises(InputError, match="unknown template 'poem'"):
        load(**files, tokenizer=bytewise, template="poem")
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        load(files["train"], "none.jsonl", tokenizer=bytewise)


def test_conversations_take_the_tokenizers_own_template(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    other = [{"role": "user", "content": "Bye."}, {"role": "assistant", "content": "See you."}]
    for name, said in (("pool", turns), ("valid", other)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"messages": said}))
    sets = load(tmp_path / "pool.jsonl", tmp_path / "valid.jsonl", tokenizer=chatty(CHATML))
    assert sets.template == "chat"
    assert "template chat, the tokenizer's own, since the rows are conversations" in sets.notices


def test_data_sets_of_any_kind_are_named(bytewise: Tokenizer) -> None:
    sets = PreparedSets(sets={"pool": make_digits(0, 20, 10).sets["pool"]}, notices=("a line",))
    assert (list(sets), len(sets), sets.rejected, sets.template) == (["pool"], 1, (), "")
    with pytest.raises(TypeError):
        PreparedSets({}, (), ())  # type: ignore[misc]
    with pytest.raises(KeyError):
        sets["test"]


def test_the_corpus_is_read_like_files() -> None:
    shares = Shares(fault=0.5)
    sets, made = load_corpus(3, 20, 5, 4, shares), make_corpus(3, 20, 5, 4, shares)
    assert tuple(read.rows for read in sets) == made
    defaults = inspect.signature(load_corpus).parameters, inspect.signature(make_corpus).parameters
    for name in ("rows", "valid", "test"):
        assert defaults[0][name].default == defaults[1][name].default


def test_tokenizers_are_learnt_from_the_worded_pool() -> None:
    pool = load_corpus(0, 50, 5, 4).pool
    plain = tokenizer_for(pool, vocab_size=400)
    assert len(plain.get_vocab()) == 400
    wording = tokenizer_for(pool, "alpaca", 400)
    assert wording.get_vocab() == tokenizer_for(pool, ALPACA, 400).get_vocab() != plain.get_vocab()
    assert "Ġinstruction" in wording.get_vocab()
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        tokenizer_for(pool, "chat")


STORIES = "A cat sat on a mat.\n\nA dog ran away.\n\nThe end of it all came."


def test_documents_and_passages_become_data_sets(tmp_path: Path, bytewise: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(STORIES)
    (tmp_path / "b.txt").write_text(STORIES)
    (tmp_path / "words.txt").write_text("One two.\n\nThree four.\n\nOne two.\n\nFive.")
    sets = load_text(
        [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "words.txt", tokenizer=bytewise, max_length=16
    )
    assert list(sets) == ["pool", "validation", "test"]
    assert len(sets["pool"]) > 6
    assert sets.template == ""
    # Passages that stand twice go to the same half.
    keys = [{row.pair_key for row in sets[name].rows} for name in ("validation", "test")]
    assert not keys[0] & keys[1]
    assert sorted(len(sets[name]) for name in ("validation", "test")) == [1, 2]
    assert [item.reason for item in sets.rejected] == ["no last word"]
    said = "\n".join(sets.notices)
    for line in (
        "3 passages are split in two by the seed",
        "pool: 6 documents in",
        "pool: a ",
        "1 of 3 rows rejected",
    ):
        assert line in said
    one = load_text(tmp_path / "a.txt", tmp_path / "words.txt", tmp_path / "words.txt", tokenizer=bytewise)
    assert "2 passages stand in both the validation and the test set" in "\n".join(one.notices)
    with pytest.raises(InputError, match="two files give a document the id"):
        load_text([tmp_path / "a.txt"] * 2, tmp_path / "words.txt", tokenizer=bytewise)
    (tmp_path / "words.txt").write_text("One two.")
    with pytest.raises(InputError, match="one passage cannot be split"):
        load_text(tmp_path / "a.txt", tmp_path / "words.txt", tokenizer=bytewise)


def test_the_text_corpus_is_read_like_files() -> None:
    read = load_text_corpus(0, 30, 5, 5)
    sets = prepare_text_sets(**read._asdict(), tokenizer=text_tokenizer_for(read.pool, 300), max_length=64)
    assert [len(rows) for rows in sets.values()] == [30, 5, 5]
    assert sets.notices[-1].startswith("pool: boilerplate 3, ")


def test_digits_are_disjoint_and_wrong_labels_are_wrong() -> None:
    digits = make_digits(3, 200, 50, 0.5)
    assert [len(rows) for rows in digits.sets.values()] == [200, 50, 1797 - 250]
    names = [name for rows in digits.sets.values() for name in rows.names(range(len(rows)))]
    assert len(set(names)) == 1797
    right = make_digits(3, 200, 50, 1e-9)
    assert not right.wrong.any()
    pools = right.sets["pool"].columns, digits.sets["pool"].columns
    np.testing.assert_array_equal(pools[0]["y"] != pools[1]["y"], digits.wrong)
    np.testing.assert_array_equal(pools[0]["x"], pools[1]["x"])
    assert 70 < digits.wrong.sum() < 130
    assert right.sets["test"].fingerprint == digits.sets["test"].fingerprint
    for noise, rows, message in (
        (1.5, 200, "noise 1.5 is no share"),
        (0.5, 1790, "rows 1790 and trusted 50: give"),
    ):
        with pytest.raises(InputError, match=message):
            make_digits(0, rows, 50, noise)
