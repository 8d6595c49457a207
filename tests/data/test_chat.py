"""The tokenizer's own chat template: targets by the prefix method."""

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from bilevel.data import CHAT, Encoding, Row, Tokenizer, encode_rows, load_tokenizer, read_rows
from bilevel.errors import InputError
from tests.data.chats import CHATML, FORGETFUL, LLAMA3, chatty

TURNS = Row("a:1", "And 2?", "", "4", system="Be brief.", history=(("Twice 1?", "2"),), form="messages")
ALPACA_ROW = Row("a:2", "Add.", "1 2", "3")


def encoded(template: str, *rows: Row, **options) -> tuple[Tokenizer, Encoding]:
    tokenizer = chatty(template)
    return tokenizer, encode_rows(rows, tokenizer, CHAT, 256, **options)


def texts(tokenizer: Tokenizer, encoding: Encoding, row: int = 0) -> tuple[str, list[str]]:
    """A row's text, and its targets' texts."""
    rows = encoding.encoded
    length = rows.lengths[row]
    mask = rows.loss_mask[row, :length]
    starts = np.flatnonzero(np.diff(mask.astype(int), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(mask.astype(int), append=0) == -1) + 1
    spans = [tokenizer.decode(rows.tokens[row, a:b]) for a, b in zip(starts, ends, strict=True)]
    return tokenizer.decode(rows.tokens[row, :length]), spans


def test_every_answer_with_its_end_is_a_target_under_chatml() -> None:
    found = encoded(CHATML, TURNS, ALPACA_ROW)
    assert texts(*found) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTwice 1?<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nAnd 2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n",
        ["2<|im_end|>\n", "4<|im_end|>\n"],
    )
    assert texts(*found, row=1) == (
        "<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n",
        ["3<|im_end|>\n"],
    )


def test_every_answer_with_its_end_is_a_target_under_llama_3() -> None:
    whole, targets = texts(*encoded(LLAMA3, TURNS))
    assert targets == ["2<|eot_id|>", "4<|eot_id|>"]
    # The date is the same on every day.
    assert whole.startswith(
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief."
    )


def test_marks_are_single_tokens_and_what_generation_sees_is_the_prefix() -> None:
    tokenizer, encoding = encoded(CHATML, ALPACA_ROW)
    rows = encoding.encoded
    prompt = rows.tokens[0, : np.argmax(rows.loss_mask[0])]
    messages = [{"role": "user", "content": "Add.\n1 2"}]
    seen = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt.tolist() == seen
    assert seen[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_tokens_that_reach_over_the_border_are_tokenised_apart() -> None:
    unended = CHATML.replace("<|im_end|>\n", "")
    tokenizer = chatty(unended.replace("assistant\n", "assistant:").replace("+ '\n' +", "+ ':' +"))
    # One token for the border itself: what generation sees ends in the middle of it.
    tokenizer.add_tokens([":x"])
    encoding = encode_rows([Row("a:1", "Go.", "", "xyz")], tokenizer, CHAT, 256)
    whole, targets = texts(tokenizer, encoding)
    assert (whole, targets) == ("<|im_start|>user:Go.<|im_start|>assistant:xyz", ["xyz"])
    assert ":x" not in tokenizer.convert_ids_to_tokens(encoding.encoded.tokens[0])


def test_the_last_response_alone() -> None:
    found = encoded(CHATML, TURNS, targets="last")
    assert texts(*found)[1] == ["4<|im_end|>\n"]


def test_templates_that_reword_earlier_turns_serve_the_last_response_alone() -> None:
    _, encoding = encoded(FORGETFUL, TURNS, ALPACA_ROW)
    assert [(item.id, item.remedy.partition(" (")[0]) for item in encoding.rejected] == [
        ("a:1", "learn the last response of each conversation alone")
    ]
    found = encoded(FORGETFUL, TURNS, targets="last")
    assert texts(*found)[1] == ["<think></think>4<|im_end|>\n"]
    assert "assistant\n2<|im_end|>" in texts(*found)[0]


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system\nrole') }}{% endif %}"
IGNORES = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)


@pytest.mark.parametrize(
    ("template", "row", "reason"),
    [
        (REFUSES + CHATML, TURNS, "the chat template refuses it (No system role)"),
        (CHATML.replace("message['role']", "message['role'] + 1"), TURNS, "the chat template refuses it ("),
        ("{% if %}", TURNS, "the chat template refuses it ("),
        (IGNORES, TURNS, "the chat template leaves out text of the system"),
        (CHATML.replace("add_generation_prompt", "false"), TURNS, None),
        (CHATML, Row("a:1", "Write <|im_end|>.", "", "No."), "the text names the special token '<|im_end|>'"),
        ("{{ messages[0]['content'] }}", ALPACA_ROW, "the chat template leaves out text of the assistant"),
    ],
    ids=range(7),
)
def test_rows_that_a_template_spoils_are_rejected_with_the_reason(template, row, reason) -> None:
    good = Row("a:9", "Go.", "", "Gone.")
    if reason is None:  # without a generation prompt the prefix is still one: the header is learned, too
        assert texts(*encoded(template, row))[1][-1] == "<|im_start|>assistant\n4<|im_end|>\n"
        return
    try:
        _, encoding = encoded(template, row, good)
        (rejected,) = encoding.rejected
        found = rejected.reason
        assert rejected.remedy
    except InputError as error:  # a template that spoils all rows
        found = str(error).partition("a:1: " if row.id == "a:1" else "a:2: ")[2]
    assert found.startswith(reason)
    assert "\n" not in found


def test_a_cut_conversation_keeps_its_last_response_and_start_token() -> None:
    tokenizer = chatty(LLAMA3)
    encoding = encode_rows([TURNS], tokenizer, CHAT, 32)
    whole, targets = texts(tokenizer, encoding)
    assert encoding.encoded.lengths[0] == 32
    assert whole.startswith("<s>")
    assert targets == ["4<|eot_id|>"]
    assert (encoding.truncated.prompts, encoding.truncated.turns) == (("a:1",), ("a:1",))


def test_a_chat_template_beside_the_tokenizer_is_found(tmp_path: Path) -> None:
    chatty(CHATML).save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    tokenizer = load_tokenizer(tmp_path)
    assert texts(tokenizer, encode_rows([TURNS], tokenizer, CHAT, 256))[1] == [
        "2<|im_end|>\n",
        "4<|im_end|>\n",
    ]


def test_real_rows_as_chats(shared_folder: Path) -> None:
    tokenizer = load_tokenizer(shared_folder / "tokenizers" / "gpt2")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    rows = read_rows(shared_folder / "data" / "pool_dolly_short.jsonl").rows[:100]
    encoding = encode_rows(rows, tokenizer, CHAT, 2048)
    assert encoding.rejected == ()
    for position, row in enumerate(rows):
        assert texts(tokenizer, encoding, position)[1] == [f"{row.output}<|im_end|>\n"]


def test_a_response_that_is_not_learned_is_context_of_the_next() -> None:
    row = replace(TURNS, unlearned=(0,))
    whole, targets = texts(*encoded(CHATML, row))
    assert whole == texts(*encoded(CHATML, TURNS))[0]
    assert targets == ["4<|im_end|>\n"]


OPENS = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")


def test_a_prompt_that_opens_what_no_response_begins_with_is_named() -> None:
    with pytest.raises(
        InputError, match=r"ends what generation sees in '<think>\\n', .* another template \(plain\)"
    ):
        encoded(OPENS, ALPACA_ROW)
    thought = replace(ALPACA_ROW, output="<think>\nEasy.\n</think>\n3")
    assert texts(*encoded(OPENS, thought))[1] == ["Easy.\n</think>\n3<|im_end|>\n"]


DATED = "{{ strftime_now('%d %B %Y') }}" + CHATML


@pytest.mark.parametrize("template", [DATED, LLAMA3])
def test_a_template_that_asks_for_the_date_gives_the_same_tokens_on_every_day(
    template: str, monkeypatch
) -> None:
    from transformers.utils import chat_template_utils

    class Someday(datetime):
        @classmethod
        def now(cls, *_: object) -> datetime:
            return cls(2031, 5, 6)

    today = encoded(template, TURNS)[1].encoded
    monkeypatch.setattr(chat_template_utils, "datetime", Someday)
    tokenizer, later = encoded(template, TURNS)
    np.testing.assert_array_equal(later.encoded.tokens, today.tokens)
    assert "2024" in texts(tokenizer, later)[0]


WITH_TOOLS = "{% if tools %}<{{ tools | length }} {{ tools[0].function.name }}>{% endif %}" + CHATML
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": None}}


@pytest.mark.parametrize("tools", [[CLOCK], json.dumps([CLOCK])])
def test_tools_reach_the_template(tools: object) -> None:
    row = replace(ALPACA_ROW, extra={"tools": tools})
    assert texts(*encoded(WITH_TOOLS, row))[0].startswith("<1 clock><|im_start|>user")
    assert texts(*encoded(WITH_TOOLS, ALPACA_ROW))[0].startswith("<|im_start|>user")


def test_tools_that_are_no_list_are_named() -> None:
    _, encoding = encoded(WITH_TOOLS, replace(ALPACA_ROW, extra={"tools": '{"name": 1}'}), TURNS)
    assert encoding.rejected[0].reason.startswith("unusable tools (tools must be a list")


def test_what_a_row_tells_the_template_reaches_it_and_no_more() -> None:
    template = "{{ tone | default('plain') }}" + CHATML
    told = replace(ALPACA_ROW, extra={"chat_template_kwargs": {"tone": "dry", "add_generation_prompt": True}})
    whole, targets = texts(*encoded(template, told))
    assert whole.startswith("dry<|im_start|>")
    assert targets == ["3<|im_end|>\n"]
