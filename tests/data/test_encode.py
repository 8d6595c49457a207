"""Rows as token arrays."""

from pathlib import Path

import numpy as np
import pytest

from bilevel.data import (
    ALPACA,
    PLAIN,
    EncodedRows,
    Encoding,
    Row,
    Tokenizer,
    encode_rows,
    load_tokenizer,
    read_rows,
    train_tokenizer,
)
from bilevel.errors import InputError

START, END = 0, 1


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """One token a byte: what is expected can be written by hand."""
    return train_tokenizer(["a"], 259)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return [tokenizer.get_vocab()[{" ": "Ġ", "\n": "Ċ"}.get(letter, letter)] for letter in text]


def encoded(tokenizer: Tokenizer, *rows: tuple[str, str], max_length: int = 64) -> Encoding:
    made = [Row(f"a:{line}", prompt, "", response) for line, (prompt, response) in enumerate(rows, start=1)]
    return encode_rows(made, tokenizer, PLAIN, max_length)


def test_a_row_is_start_prompt_response_end_and_padding(bytewise: Tokenizer) -> None:
    rows, rejected, truncated = encoded(bytewise, ("ab", "cd"), ("a", "e"))
    np.testing.assert_array_equal(
        rows.tokens,
        [
            [START, *ids(bytewise, "ab\n"), *ids(bytewise, "cd"), END, 0],
            [START, *ids(bytewise, "a\n"), *ids(bytewise, "e"), END, 0, 0, 0],
        ],
    )
    np.testing.assert_array_equal(rows.segments, [[1] * 7 + [0], [1] * 5 + [0] * 3])
    np.testing.assert_array_equal(rows.loss_mask, [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(rows.lengths, [7, 5])
    assert (rejected, truncated.prompts, truncated.responses, truncated.warning) == ((), (), (), "")


def test_width_is_the_longest_row_rounded_up(bytewise: Tokenizer) -> None:
    assert encoded(bytewise, ("abcd", "e")).encoded.tokens.shape == (1, 8)
    assert encoded(bytewise, ("abcd", "ef")).encoded.tokens.shape == (1, 16)


def test_a_given_width_is_kept_and_rows_that_do_not_fit_are_named(bytewise: Tokenizer) -> None:
    rows = [Row("a:1", "a", "", "b"), Row("a:2", "abcd", "", "ef")]
    assert encode_rows(rows, bytewise, PLAIN, 64, width=20).encoded.tokens.shape == (2, 20)
    with pytest.raises(InputError, match="a:2: 9 tokens do not fit into a width of 8; raise the width"):
        encode_rows(rows, bytewise, PLAIN, 64, width=8)


def test_prompt_tokens_do_not_depend_on_the_response() -> None:
    tokenizer = train_tokenizer(["ab\nab\nab"] * 9, 300)
    first, second = encoded(tokenizer, ("ab", "\nab"), ("ab", "b")).encoded.tokens
    prompt = tokenizer("ab\n", add_special_tokens=False)["input_ids"]
    assert list(first[1 : 1 + len(prompt)]) == list(second[1 : 1 + len(prompt)]) == prompt


def test_names_of_special_tokens_in_a_text_are_text(bytewise: Tokenizer) -> None:
    rows = encoded(bytewise, ("a</s>b", "c<s>d")).encoded
    inside = rows.tokens[0, 1 : rows.lengths[0] - 1]
    assert not {START, END} & set(inside)
    assert bytewise.decode(inside) == "a</s>b\nc<s>d"
    assert bytewise("</s>", add_special_tokens=False)["input_ids"] == [END]


def test_a_long_prompt_loses_its_start_and_keeps_the_start_token(bytewise: Tokenizer) -> None:
    rows, _, truncated = encoded(bytewise, ("abcdef", "xy"), max_length=8)
    np.testing.assert_array_equal(rows.tokens[0], [START, *ids(bytewise, "def\nxy"), END])
    np.testing.assert_array_equal(rows.loss_mask[0], [0, 0, 0, 0, 0, 1, 1, 1])
    assert (truncated.prompts, truncated.responses) == (("a:1",), ())


def test_a_cut_response_does_not_teach_to_stop(bytewise: Tokenizer) -> None:
    rows, _, truncated = encoded(bytewise, ("abc", "uvwxyz"), max_length=6)
    np.testing.assert_array_equal(rows.tokens[0], [START, *ids(bytewise, "\nuvwx"), 0, 0])
    np.testing.assert_array_equal(rows.loss_mask[0], [0, 0, 1, 1, 1, 1, 0, 0])
    assert (truncated.prompts, truncated.responses) == (("a:1",), ("a:1",))
    assert truncated.warning == (
        "1 rows lost part of their prompt, 1 rows the end of their response to the length limit (first: a:1); "
        "the longest row has 12 tokens, raise the limit to keep them whole"
    )


@pytest.mark.parametrize("length", range(3, 12))
def test_no_row_exceeds_the_limit_and_each_has_a_target_after_a_token(
    bytewise: Tokenizer, length: int
) -> None:
    rows = encoded(bytewise, ("abcd", "uvw"), max_length=length).encoded
    assert rows.lengths[0] == min(length, 10)
    assert rows.loss_mask.any()
    assert not rows.loss_mask[:, 0].any()
    assert (rows.tokens[0] == END).sum() == (length >= 6)


def test_limits_without_room_are_refused(bytewise: Tokenizer) -> None:
    with pytest.raises(
        InputError, match="maximum length 2 leaves no room for prompt and response; give at least 3"
    ):
        encoded(bytewise, ("a", "b"), max_length=2)


class Deaf:
    """A tokenizer without start token that knows no vowels."""

    bos_token_id, eos_token_id = None, 9

    def __call__(self, text: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in each if letter not in "aeiou"] for each in text]}

    def decode(self, token_ids: list[int], **options: object) -> str:
        return "".join(map(chr, token_ids))

    def get_vocab(self) -> dict[str, int]:
        return {}

    def save_pretrained(self, save_directory: str) -> None:
        raise NotImplementedError


def test_rows_without_a_response_token_are_rejected() -> None:
    rows, rejected, _ = encoded(Deaf(), ("ab", "cd"), ("b", "aeiou"))
    assert [(item.id, item.reason) for item in rejected] == [("a:2", "no response token")]
    assert "tokenizer" in rejected[0].remedy
    assert [row.id for row in rows.rows] == ["a:1"]
    np.testing.assert_array_equal(rows.tokens[0, :5], [ord("b"), 10, ord("c"), ord("d"), 9])
    np.testing.assert_array_equal(rows.loss_mask[0], [0, 0, 1, 1, 1, 0, 0, 0])


def test_no_row_left_is_an_error() -> None:
    with pytest.raises(
        InputError, match=r"none of 2 rows can be encoded \(first a:1: no response token; write text"
    ):
        encoded(Deaf(), ("b", "a"), ("c", "e"))


@pytest.fixture
def three(bytewise: Tokenizer) -> EncodedRows:
    return encoded(bytewise, ("a", "x"), ("bb", "yy"), ("ccc", "zzz")).encoded


def test_batches_are_padded_and_filled(three: EncodedRows) -> None:
    batch = three.batch([2, -1, 0])
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32,
        "segments": np.int32,
        "loss_mask": np.bool_,
        "row_id": np.int32,
    }
    np.testing.assert_array_equal(batch["row_id"], [2, -1, 0])
    for name in ("tokens", "segments", "loss_mask"):
        np.testing.assert_array_equal(batch[name][[0, 2]], getattr(three, name)[[2, 0]])
        assert not batch[name][1].any()


def test_batches_refuse_rows_that_do_not_exist(three: EncodedRows) -> None:
    with pytest.raises(ValueError, match=r"positions must lie in -1 .. 2, got 0 .. 3"):
        three.batch([0, 3])


def test_a_selection_is_a_set_of_its_own(three: EncodedRows) -> None:
    chosen = three.select(np.array([2, 0]))
    assert [row.id for row in chosen.rows] == ["a:3", "a:1"]
    np.testing.assert_array_equal(chosen.batch([0])["tokens"], three.batch([2])["tokens"])
    np.testing.assert_array_equal(chosen.batch([0])["row_id"], [0])
    assert len(chosen) == 2


def test_real_rows_in_the_alpaca_wording(shared_folder: Path) -> None:
    tokenizer = load_tokenizer(shared_folder / "models" / "stories260k")
    rows = read_rows(shared_folder / "data" / "val_rasbt_1100.jsonl").rows[:100]
    made, rejected, truncated = encode_rows(rows, tokenizer, ALPACA, 512)
    assert (len(made), rejected, truncated.responses) == (100, (), ())
    for position, row in enumerate(rows):
        tokens = made.tokens[position, : made.lengths[position]]
        assert (tokens[0], tokens[-1]) == (1, 2)
        response = tokenizer.decode(made.tokens[position][made.loss_mask[position]][:-1])
        assert response.strip() == row.output.strip()
