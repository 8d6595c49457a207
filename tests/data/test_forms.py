"""Columns in every known form, recognised, read and written back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bilevel.data import ReadRows, Row, read_rows, write_rejected, write_rows
from bilevel.errors import InputError

TURNS = [
    ("system", "Be brief."),
    ("user", "Twice 1?"),
    ("assistant", "2"),
    ("user", "And 2?"),
    ("assistant", "4"),
]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


def chat(turns=TURNS) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def sharegpt(turns=TURNS) -> dict:
    return {"conversations": [{"from": SHAREGPT[role], "value": text} for role, text in turns]}


def read(folder: Path, *records: dict, name: str = "rows.jsonl") -> ReadRows:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)))
    return read_rows(path)


@pytest.mark.parametrize(
    ("record", "title"),
    [
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "Alpaca columns (instruction, input, output)",
        ),
        (
            {"instruction": "Add.", "context": "1 2", "response": "3"},
            "Dolly columns (instruction, context, response)",
        ),
        ({"prompt": "Add.\n1 2", "completion": "3"}, "prompt/completion columns"),
        ({"prompt": "Add.\n1 2", "response": "3"}, "prompt/response columns"),
        ({"question": "Add.\n1 2", "answer": "3"}, "question/answer columns"),
        (chat([("user", "Add.\n1 2"), ("assistant", "3")]), "chat messages"),
        (sharegpt([("user", "Add.\n1 2"), ("assistant", "3")]), "ShareGPT conversations"),
        (
            {"messages": sharegpt([("user", "Add.\n1 2"), ("assistant", "3")])["conversations"]},
            "chat messages (from, value)",
        ),
        (
            {"conversations": chat([("user", "Add.\n1 2"), ("assistant", "3")])["messages"]},
            "conversations (role, content)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forms_say_the_same_are_named_and_written_back(record: dict, title: str, tmp_path: Path) -> None:
    columns = record | {"fault": "no", "source": "web"}
    ((row,), rejected, notices) = read(tmp_path, columns)
    assert (row.prompt, row.output, rejected) == ("Add.\n1 2", "3", ())
    assert (row.labels, row.extra) == ({"fault": ""}, {"fault": "no", "source": "web"})
    assert notices[0] == f"rows.jsonl: 1 rows, {title}"
    assert notices[1].startswith("rows.jsonl: columns 'fault' are read as labels")
    write_rows(tmp_path / "out.jsonl", [row])
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert written == columns | {"id": "rows.jsonl:1"}


@pytest.mark.parametrize("make", [chat, sharegpt])
def test_conversations_have_a_system_message_and_earlier_turns(make, tmp_path: Path) -> None:
    record = make()
    (turns,) = record.values()
    turns[0]["weight"] = 0  # keys that say nothing here stay
    ((row,), *_, notices) = read(tmp_path, record)
    assert (row.system, row.history) == ("Be brief.", (("Twice 1?", "2"),))
    assert (row.instruction, row.output) == ("And 2?", "4")
    assert notices[0].endswith(", 1 with several turns")
    write_rows(tmp_path / "out.jsonl", [row])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == record | {"id": "rows.jsonl:1"}


@pytest.mark.parametrize("make", [chat, sharegpt])
def test_a_rewritten_conversation_is_written_in_its_form(make, tmp_path: Path) -> None:
    ((row,), *_) = read(tmp_path, make())
    write_rows(tmp_path / "out.jsonl", [replace(row, output="four")])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == make([*TURNS[:-1], ("assistant", "four")]) | {
        "id": "rows.jsonl:1"
    }


def test_rows_made_by_hand_are_written_with_all_they_say(tmp_path: Path) -> None:
    rows = [
        Row("a:1", "And 2?", "", "4", system="Be brief.", history=(("Twice 1?", "2"),)),
        Row("a:2", "Add.", "1 2", "3", system="Be brief."),
        Row("a:3", "Add.", "1 2", "3", form="prompt/completion"),
    ]
    write_rows(tmp_path / "out.jsonl", rows)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0] == {"id": "a:1"} | chat()
    assert lines[1] == {
        "id": "a:2",
        "system": "Be brief.",
        "instruction": "Add.",
        "input": "1 2",
        "output": "3",
    }
    assert lines[2] == {"id": "a:3", "prompt": "Add.\n1 2", "completion": "3"}


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_system_message_unless_the_conversation_has_one(
    column: str, tmp_path: Path
) -> None:
    ((row,), *_, notices) = read(tmp_path, {"question": "Twice 1?", "response": "2", column: "Be brief."})
    assert row.system == "Be brief."
    assert f"column {column!r} as system message" in notices[0]
    write_rows(tmp_path / "out.jsonl", [row])
    assert json.loads((tmp_path / "out.jsonl").read_text())[column] == "Be brief."
    ((row,), *_) = read(tmp_path, chat() | {column: "Be verbose."})
    assert row.system == "Be brief."


def test_conversations_are_taken_before_prompts_and_what_is_left_is_said(tmp_path: Path) -> None:
    ((row,), *_, notices) = read(tmp_path, chat() | {"prompt": "Twice 1?", "completion": "2"})
    assert row.output == "4"
    assert row.extra == {"prompt": "Twice 1?", "completion": "2"}
    assert notices[0].endswith("completion and prompt not used for training")


def test_turns_that_nobody_answers_are_kept_and_said(tmp_path: Path) -> None:
    record = chat([*TURNS, ("user", "Thanks!")])
    ((row,), *_, notices) = read(tmp_path, record)
    assert row.output == "4"
    assert notices[1].startswith("rows.jsonl: 1 conversations end in a turn without a response")
    write_rows(tmp_path / "out.jsonl", [row])
    assert json.loads((tmp_path / "out.jsonl").read_text())["messages"] == record["messages"]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "no assistant turn"),
        ([("user", "a")], "no assistant turn"),
        ([("user", "a"), ("asistant", "b")], "unknown role 'asistant'"),
        ([("user", "a"), ("assistant", " ")], "empty response"),
        ([("user", "a"), ("assistant", None)], "empty response"),
        ([("user", ""), ("assistant", "b")], "empty question"),
        ([("assistant", "b")], "the first turn is the assistant's"),
        ([("user", "a"), ("user", "a"), ("assistant", "b")], "two user turns in a row"),
        ([("user", "a"), ("assistant", "b"), ("assistant", "b")], "two assistant turns in a row"),
        ([("user", "a"), ("system", "s"), ("assistant", "b")], "a system message after the first turn"),
        ([("user", "a"), ("assistant", "b\ud800")], "broken characters (half of a surrogate pair)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_conversations_that_cannot_be_learned_from_are_rejected_as_they_are(
    turns, reason, tmp_path: Path
) -> None:
    record = chat(turns)
    rows, (rejected,), _ = read(tmp_path, chat(), record)
    assert len(rows) == 1
    assert (rejected.id, rejected.reason) == ("rows.jsonl:2", reason)
    assert rejected.remedy
    write_rejected(tmp_path / "rejected.jsonl", [rejected])
    written = json.loads((tmp_path / "rejected.jsonl").read_text())
    assert written == record | {"id": "rows.jsonl:2", "reason": reason, "remedy": rejected.remedy}


def test_a_first_conversation_of_no_turns_says_nothing_of_the_form(tmp_path: Path) -> None:
    rows, rejected, _ = read(tmp_path, {"messages": None}, chat())
    assert (len(rows), len(rejected)) == (1, 1)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [{"text": "a"}],
            ":1: no known columns (there: 'text'); rename yours to messages, conversations, instruction/output",
        ),
        (
            [{"completion": "a"}],
            ":1: column 'prompt' is missing (there: 'completion'); add it, or rename yours to",
        ),
        (
            [chat(), {"prompt": "a", "completion": "b"}],
            ":2: column 'messages' is missing (there: 'prompt', 'completion'): this row has prompt/completion columns, "
            "the file began with chat messages; keep one form a file",
        ),
        ([{"messages": "Hello"}], ":1: column 'messages' must be a list of turns, this is str; write it as"),
        (
            [{"messages": ["Hello"]}],
            ":1: turn 1 of 'messages' needs the keys 'role' and 'content' (there: str); write both",
        ),
        (
            [{"messages": [{"speaker": "a", "text": "b"}]}],
            ":1: turn 1 of 'messages' needs the keys 'role' and 'content' (there: 'speaker', 'text')",
        ),
        (
            [chat([("user", 3)])],
            ":1: turn 1 of 'messages': 'content' must be text, this is int; write it as a string",
        ),
        ([{"prompt": "a", "completion": 3}], ":1: column 'completion' must be text, this is int"),
        (
            [{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}],
            ":1: column 'prompt' must be text, this is list",
        ),
    ],
    ids=range(9),
)
def test_unknown_and_mixed_forms_are_one_line(records, expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, *records)
    assert str(error.value).startswith(f"{tmp_path / 'rows.jsonl'}{expected}")
    assert "\n" not in str(error.value)
