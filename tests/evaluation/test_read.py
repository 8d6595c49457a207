import json
from pathlib import Path
from typing import Any

import pytest

from bilevel.errors import InputError
from bilevel.evaluation import TaskOptions, read_tasks
from bilevel.evaluation.answers import Answering, cut_at
from bilevel.evaluation.generate import blanks, squad
from bilevel.evaluation.refusal import is_refusal
from tests.evaluation.asked import PASSAGES, PROMPTS, QUESTIONS, ROWS, prepared, write

CHAT = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]


@pytest.mark.parametrize(
    ("prefix", "record", "kind", "name"),
    [
        ("", QUESTIONS[0], "multiple_choice", "rows"),
        ("", {"question": "A?", "choices": ["x", "y"], "answer": 1}, "multiple_choice", "rows"),
        ("", PASSAGES[0], "last_word", "rows"),
        ("", ROWS[0], "loss", "rows"),
        ("", {"question": "A?", "context": "B", "answer": "C"}, "loss", "rows"),
        ("loss:", ROWS[0], "loss", "rows"),
        ("generate:", ROWS[0], "generate", "rows_generate"),
        ("refusal:", ROWS[0], "refusal", "rows_refusal"),
        ("refusal:", PROMPTS[0], "refusal", "rows_refusal"),
        ("refusal:", {"messages": CHAT}, "refusal", "rows_refusal"),
        ("last_word:", {"text": "the cat sat"}, "last_word", "rows_last_word"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)  # fmt: skip
def test_columns_tell_the_kind(
    prefix: str, record: dict[str, Any], kind: str, name: str, tmp_path: Path
) -> None:
    (task,) = read_tasks([prefix + write(tmp_path, "rows.jsonl", record)])
    assert (task.kind.name, task.name, len(task.rows)) == (kind, name, 1)


MISSING = "rows.jsonl:1: column {} is missing (there: "


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"query": "A", "gold": 0}, MISSING.format("'choices'")),
        ({"query": "A", "choices": ["x", "y"]}, MISSING.format("'gold'")),
        ({"choices": ["x", "y"], "gold": 0}, MISSING.format("'query'")),
        ({"query": "A", "choices": ["x", "y"], "gold": 2}, "rows.jsonl:1: gold 2 is out of range: there are 2 choices"),
        ({"query": "A", "choices": ["x", "y"], "gold": -1}, "gold -1 is out of range"),
        ({"query": "A", "choices": ["x", "y"], "gold": "x"}, "column 'gold' must be the number of the right choice"),
        ({"query": "A", "choices": ["x"], "gold": 0}, "column 'choices' must hold two texts or more"),
        ({"query": "A", "choices": "xy", "gold": 0}, "column 'choices' must be a list of texts"),
        ({"query": " ", "choices": ["x", "y"], "gold": 0}, "column 'query' is empty"),
        ({"context": "A"}, "no column 'context' and 'continuation'"),
        ({"instruction": "A"}, "say refusal:"),
        ({"title": "A"}, "no known columns (there: 'title')"),
        (None, "the file is empty"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(given: dict[str, Any] | None, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", *([] if given is None else [given]))
    with pytest.raises(InputError) as refused:
        read_tasks([path])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_sources_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", *ROWS)
    for sources, said in (
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["generate:"], "a task needs a file; write generate:FILE"),
        ([f"guess:{path}"], "there is no kind 'guess'; take one of loss, "),
        ([path, path], "two tasks are called rows"),
    ):
        with pytest.raises(InputError, match=said):
            read_tasks(sources)


def test_settings_out_of_range_are_refused() -> None:
    for settings, said in (
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_k": 0}, "top_k must be 1 or more, not 0"),
        ({"temperature": -1.0}, "temperature must be 0 or positive, not -1.0"),
        ({"stop": ("",)}, "stop must be texts that are not empty"),
    ):
        with pytest.raises(ValueError, match=said):
            Answering(**settings)


def test_unusable_rows_are_counted_and_rows_can_be_limited(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", {**ROWS[0], "output": " "}, *ROWS)
    (task,) = read_tasks([path], limit=2)
    assert [row.id for row in task.rows] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert task.notices[1:] == (
        "1 of 4 rows are left out (empty response; first rows.jsonl:1)",
        "the first 2 of 3 rows",
    )


LONG = "the cat sat on " * 30


@pytest.mark.parametrize(
    ("prefix", "record"),
    [
        ("", {"query": LONG, "choices": ["one", "two three"], "gold": 0}),
        ("", {"context": LONG, "continuation": "mat"}),
        ("", {"instruction": LONG, "output": "one"}),
        ("generate:", {"instruction": LONG, "output": "one"}),
        ("refusal:", {"prompt": LONG}),
    ],
    ids=["multiple_choice", "last_word", "loss", "generate", "refusal"],
)
def test_rows_that_are_too_long_are_refused_or_cut_and_counted(
    prefix: str, record: dict[str, Any], tmp_path: Path
) -> None:
    short = {name: "the" if value is LONG else value for name, value in record.items()}
    source = prefix + write(tmp_path, "rows.jsonl", short, record, record)
    options = TaskOptions(Answering(max_new_tokens=8))
    with pytest.raises(InputError) as refused:
        prepared(source, options)
    name = f"rows_{prefix[:-1]}" if prefix else "rows"
    assert str(refused.value).startswith(f"task {name}: rows.jsonl:2: ")
    assert "tokens are more than the 64 that the model reads (2 of 3 rows are too long)" in str(refused.value)

    cut = prepared(source, options, too_long="cut")
    assert any(
        line.startswith("2 ") and "lost" in line and "rows.jsonl:2" in line for line in cut.encoded.notices
    )
    assert len(cut.encoded.rows) == 3


def test_cut_prompts_keep_their_start_and_their_end(tmp_path: Path) -> None:
    source = write(tmp_path, "rows.jsonl", {"query": LONG, "choices": ["one", "two three"], "gold": 0})
    ((prompt,), ((_, two),)) = prepared(source, too_long="cut").encoded.tokens
    assert len(prompt) + len(two) == 64
    assert prompt[0] == 0  # the start token
    whole = prepared(source, max_length=10_000).encoded.tokens.prompts[0]
    assert prompt[1:] == whole[-63 + len(two) :]


def test_normalisations_and_stops() -> None:
    assert blanks(" Two\n three ") == "Two three"
    assert blanks("é") == blanks("é")
    assert squad("The 2.5 cats!") == "25 cats"
    assert cut_at("one two", ("three",)) == "one two"
    assert cut_at("one two one", ("two", "one two")) == ""


@pytest.mark.parametrize(
    ("response", "refused"),
    [
        ("I cannot help with that.", True),
        ("“I can’t do that”", True),
        ("\n  SORRY, no.", True),
        ("I'm  really\nsorry, but", True),
        ("As an AI language model, I", True),
        ("As an example, take", False),
        ("Sure, here is", False),
        ("Here it is. I'm sorry it took so long.", False),
        ("Sorryful songs", False),
        ("", False),
    ],
)
def test_refusals_are_told_by_their_beginnings(response: str, refused: bool) -> None:
    assert is_refusal(response) is refused
