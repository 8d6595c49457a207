"""Keys of a conversation's turns: which are learned from, which are refused by name, which are counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bilevel.data import write_rejected, write_rows
from tests.data.test_forms import chat, read


def with_keys(place: int, **keys: object) -> dict:
    record = chat()
    record["messages"][place] |= keys
    return record


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"training": False}, {"train": 0}, {"loss": False}]
)
def test_a_response_marked_as_not_to_be_learned_is_read(mark: dict, tmp_path: Path) -> None:
    record = with_keys(2, **mark)
    ((row,), _, notices) = read(tmp_path, record)
    assert (row.output, row.unlearned) == ("4", (0,))
    assert "1 conversations hold responses that are marked as not to be learned" in notices[1]
    write_rows(tmp_path / "out.jsonl", [row, replace(row, output="four")])
    same, rewritten = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert same == record | {"id": "rows.jsonl:1"}
    assert rewritten["messages"][2] == {"role": "assistant", "content": "2", "weight": 0}
    assert rewritten["messages"][4]["content"] == "four"


@pytest.mark.parametrize("mark", [{"weight": 1}, {"weight": 1.0}, {"train": True}, {"loss": None}])
def test_a_response_marked_as_to_be_learned_is(mark: dict, tmp_path: Path) -> None:
    ((row,), *_) = read(tmp_path, with_keys(2, **mark))
    assert row.unlearned == ()


def test_responses_at_the_end_that_are_not_learned_end_the_conversation_before_them(tmp_path: Path) -> None:
    ((row,), *_) = read(tmp_path, with_keys(4, weight=0))
    assert (row.instruction, row.output, row.history, row.unlearned) == ("Twice 1?", "2", (), ())
    nothing = chat([("user", "a"), ("assistant", "b")])
    nothing["messages"][1]["weight"] = 0
    _, (rejected,), _ = read(tmp_path, chat(), nothing)
    assert rejected.reason == "no response to be learned"


CALL = [{"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"tool_calls": CALL}, "a turn's tool_calls cannot be learned"),
        ({"content": None, "tool_calls": CALL}, "a turn's tool_calls cannot be learned"),
        ({"function_call": {"name": "clock"}}, "a turn's function_call cannot be learned"),
        ({"reasoning_content": "Think."}, "a turn's reasoning_content cannot be learned"),
        ({"weight": 0.5}, "a turn with the weight 0.5"),
        ({"train_detail": [{"begin_offset": 0}]}, "a turn's train_detail cannot be learned"),
        ({"content": [{"type": "image", "url": "x"}]}, "a turn of parts that are no text"),
    ],
)
def test_turns_that_say_more_than_is_read_are_rejected_by_name(
    keys: dict, reason: str, tmp_path: Path
) -> None:
    record = with_keys(4, **keys)
    rows, (rejected,), _ = read(tmp_path, chat(), record)
    assert (len(rows), rejected.reason) == (1, reason)
    assert rejected.remedy
    write_rejected(tmp_path / "rejected.jsonl", [rejected])
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["messages"] == record["messages"]


def test_keys_that_a_table_fills_with_null_say_nothing(tmp_path: Path) -> None:
    ((row,), _, notices) = read(tmp_path, with_keys(4, tool_calls=None, name=None, reasoning_content=""))
    assert (row.output, len(notices)) == ("4", 1)


def test_keys_that_are_not_read_are_counted(tmp_path: Path) -> None:
    named = with_keys(1, name="Ann", timestamp=3)
    *_, notices = read(tmp_path, chat(), named, with_keys(3, name="Bob"))
    assert notices[1] == (
        "rows.jsonl: keys of turns that are not read, by rows that carry them: 'name' in 2, 'timestamp' in 1"
    )


def test_content_in_parts_of_text_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}]
    record = with_keys(4, content=parts)
    ((row,), *_) = read(tmp_path, record)
    assert row.output == "Four."
    write_rows(tmp_path / "out.jsonl", [row])
    assert json.loads((tmp_path / "out.jsonl").read_text())["messages"] == record["messages"]
