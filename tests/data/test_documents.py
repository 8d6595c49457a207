"""Plain text: where documents begin, how they are cut, and which word of a passage counts."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tokenizers import processors

from bilevel.data import (
    encode_documents,
    encode_passages,
    load_tokenizer,
    read_documents,
    read_passages,
    source_of,
    train_tokenizer,
    write_rows,
)
from bilevel.data.rows import Row
from bilevel.errors import InputError

TEXT = "\n\nOne day, a cat sat.\nIt slept.\n\n \nTwo dogs ran.\n\nThe end.\n"


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], 280)


def test_documents_stand_apart_by_blank_lines_and_know_their_line(write):
    rows = read_documents(write("book.txt", TEXT)).rows
    assert [(row.id, row.output) for row in rows] == [
        ("book.txt:3", "One day, a cat sat.\nIt slept."),
        ("book.txt:7", "Two dogs ran."),
        ("book.txt:9", "The end."),
    ]
    assert {source_of(row) for row in rows} == {"book"}


def test_an_end_of_text_mark_keeps_paragraphs_together(write):
    path = write("tales.txt", "A.\n\nB.\n<|endoftext|>\nC.<|endoftext|>\n\n<|endoftext|>D.\r\n")
    assert [(row.id, row.output) for row in read_documents(path).rows] == [
        ("tales.txt:1", "A.\n\nB."),
        ("tales.txt:5", "C."),
        ("tales.txt:7", "D."),
    ]
    assert len(read_documents(path, "blank").rows) == 3


def test_json_lines_with_text_and_source(write):
    lines = [{"text": " First.\n", "source": "web", "n": 3}, {"text": "  "}, {"text": "Last."}]
    found = read_documents(write("web.jsonl", "".join(json.dumps(line) + "\n\n" for line in lines)))
    assert [(row.id, row.output, source_of(row)) for row in found.rows] == [
        ("web.jsonl:1", "First.", "web"),
        ("web.jsonl:5", "Last.", "web"),
    ]
    assert found.rows[0].extra["n"] == 3
    assert [(item.id, item.reason) for item in found.rejected] == [("web.jsonl:3", "empty text")]


def test_documents_are_written_in_the_form_they_came_in(write, tmp_path):
    found = read_documents(write("web.jsonl", '{"text": "First.", "n": 3}\n{"text": "Last.", "n": 4}'))
    write_rows(tmp_path / "kept.jsonl", found.rows[1:], score=[0.5])
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert lines == [{"id": "web.jsonl:2", "text": "Last.", "source": "web", "n": 4, "score": 0.5}]
    (again,) = read_documents(tmp_path / "kept.jsonl").rows
    assert (again.output, again.extra["score"]) == ("Last.", 0.5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", " \n", "the file is empty"),
        ("a.txt", b"one\ntwo \xff", "a.txt:2: not UTF-8"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', "a.jsonl:2: broken JSON"),
        ("a.jsonl", '{"body": "x"}', "no column 'text' (there: 'body')"),
        ("a.jsonl", "[]", "no rows inside"),
        ("a.jsonl", '{"text": 3}', "must be text, this is int"),
    ],
)
def test_unusable_text(name, content, said, write):
    with pytest.raises(InputError, match=re.escape(said)):
        read_documents(write(name, content))


def test_missing_files_and_folders(tmp_path):
    for path, said in ((tmp_path / "no.txt", "no such file"), (tmp_path, "folder")):
        with pytest.raises(InputError, match=said):
            read_documents(path)


@pytest.mark.parametrize("bos", [True, False])
def test_pieces_of_a_document_are_its_tokens_and_its_text(bos):
    tokenizer = train_tokenizer([TEXT], 280)
    if not bos:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    text = "One day, a cat sat.  Two dogs ran é to\nthe end. " * 3
    rows = [Row("t:1", "", "", text.strip()), Row("t:9", "", "", "The")]
    encoded = encode_documents(rows, tokenizer, 16).encoded
    *pieces, last = range(len(encoded))
    assert [row.id for row in encoded.rows[:2]] == ["t:1", "t:1.2"]
    assert encoded.rows[last].id == "t:9"
    assert "".join(encoded.rows[place].output for place in pieces) == text.strip()
    assert encoded.tokens.shape[1] == 16
    assert np.ptp(encoded.lengths[:last]) <= 1
    joined = [t for place in pieces for t in encoded.tokens[place, int(bos) : encoded.lengths[place]]]
    assert tokenizer.decode(joined) == text.strip() + "</s>"
    assert [int(t == tokenizer.eos_token_id) for t in joined] == [0] * (len(joined) - 1) + [1]
    # All count but what nothing predicts.
    np.testing.assert_array_equal(encoded.loss_mask.sum(axis=1), encoded.lengths - 1)
    assert not encoded.loss_mask[:, 0].any()


def test_passages_are_read_from_columns_and_from_running_text(write):
    columns = [
        {"context": "He called her,", "continuation": "Shane"},
        {"context": "He called", "continuation": ""},
    ]
    found = read_passages(write("p.jsonl", "\n".join(map(json.dumps, columns))))
    assert [(row.id, row.instruction, row.output) for row in found.rows] == [
        ("p.jsonl:1", "He called her,", "Shane")
    ]
    assert [item.reason for item in found.rejected] == ["empty response"]
    cut = read_passages(write("p.txt", "She said:\n\"It isn't a well-known cat's.\"\n\nHello!\n\nTwo\nwords"))
    assert [(row.id, row.instruction, row.output) for row in cut.rows] == [
        ("p.txt:1", "She said:\n\"It isn't a well-known", "cat's"),
        ("p.txt:6", "Two", "words"),
    ]
    assert [(item.id, item.reason) for item in cut.rejected] == [("p.txt:4", "no last word")]


def test_only_the_last_word_counts(tokenizer):
    rows = [Row("p:1", "One day, a cat", "", "sat"), Row("p:2", "x " * 40 + "Two ", "", "dogs")]
    encoded, rejected, truncated = encode_passages(rows, tokenizer, 12)
    assert (rejected, truncated.prompts) == ((), ("p:2",))
    for place, word in enumerate((" sat", " dogs")):
        counted = encoded.tokens[place][encoded.loss_mask[place]]
        assert tokenizer.decode(counted) == word
    whole = encoded.tokens[0][encoded.segments[0] > 0]
    assert tokenizer.decode(whole) == "<s>One day, a cat sat"
    assert encoded.tokens[1, 0] == tokenizer.bos_token_id
    assert encoded.lengths.tolist()[1] == 12


def test_words_that_do_not_fit_are_left_out(tokenizer):
    rows = [Row("p:1", "A", "", "x" * 30), Row("p:2", "A", "", "cat")]
    encoded, rejected, _ = encode_passages(rows, tokenizer, 8)
    assert [row.id for row in encoded.rows] == ["p:2"]
    assert [item.id for item in rejected] == ["p:1"]
    with pytest.raises(InputError, match="none of 1 passages"):
        encode_passages(rows[:1], tokenizer, 8)


def test_no_room_and_no_tokens(tokenizer):
    with pytest.raises(InputError, match="maximum length 3"):
        encode_documents([Row("d:1", "", "", "cat")], tokenizer, 3)


def test_sentencepiece_words_stand_as_in_running_text(shared_folder):
    tokenizer = load_tokenizer(shared_folder / "models" / "stories260k")
    encoded = encode_passages([Row("p:1", "Once upon a", "", "time")], tokenizer, 32).encoded
    running = tokenizer("Once upon a time", add_special_tokens=False)["input_ids"]
    assert encoded.tokens[0][encoded.segments[0] > 0].tolist() == [tokenizer.bos_token_id, *running]
    assert encoded.loss_mask[0].sum() == 1
