"""Wording around rows."""

import pytest

from bilevel.data import ALPACA, CHAT, PLAIN, RAW, Row, choose_template, get_template
from bilevel.errors import InputError

ALONE = Row("a:1", "Name a color.", "", "Red.")
WITH_INPUT = Row("a:2", "Add {these}.", "1 {2}", "3")
TURNS = Row("a:3", "And 2?", "", "4", system="Be {brief}.", history=(("Twice 1?", "2"),), form="messages")


def test_alpaca_wording_is_the_original() -> None:
    assert ALPACA.texts(ALONE) == [
        (
            "Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nName a color.\n\n### Response:",
            "Red.",
        )
    ]
    assert ALPACA.texts(WITH_INPUT) == [
        (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request."
            "\n\n### Instruction:\nAdd {these}.\n\n### Input:\n1 {2}\n\n### Response:",
            "3",
        )
    ]


def test_plain_wording() -> None:
    assert PLAIN.texts(ALONE) == [("Name a color.\n", "Red.")]
    assert PLAIN.texts(WITH_INPUT) == [("Add {these}.\n1 {2}\n", "3")]


def test_turns_and_system_messages_stand_before_the_last_question() -> None:
    assert PLAIN.texts(TURNS) == [("Be {brief}.\nTwice 1?\n", "2"), ("And 2?\n", "4")]
    first, last = ALPACA.texts(TURNS)
    assert first[0].startswith("Be {brief}.\n\nBelow is")
    assert last[0].startswith("Below is")


def test_raw_adds_nothing() -> None:
    assert RAW.texts(ALONE) == [("Name a color.", "Red.")]


def test_a_blank_input_is_no_input() -> None:
    assert PLAIN.prompt(Row("a:1", "Go.", " \n", "x")) == "Go.\n"


def test_templates_are_found_by_name() -> None:
    assert get_template("plain") is PLAIN
    with pytest.raises(
        InputError, match="unknown template 'chatty'; choose one of alpaca, chat, dialogue, plain, raw"
    ):
        get_template("chatty")


class Chatty:
    chat_template = "{{ messages }}"


class Mute:
    chat_template = None


@pytest.mark.parametrize(
    ("name", "row", "tokenizer", "expected", "said"),
    [
        ("auto", ALONE, None, PLAIN, ""),
        ("auto", ALONE, Mute(), PLAIN, ""),
        ("auto", ALONE, Chatty(), PLAIN, "chat is the tokenizer's own"),
        ("auto", TURNS, Chatty(), CHAT, "since the rows are conversations"),
        ("auto", TURNS, None, PLAIN, "no chat template"),
        ("plain", TURNS, Chatty(), PLAIN, ""),
        ("chat", ALONE, Chatty(), CHAT, ""),
    ],
)
def test_auto_takes_the_chat_template_for_conversations(name, row, tokenizer, expected, said) -> None:
    template, notice = choose_template(name, [row], tokenizer)
    assert template is expected
    assert said in notice
    assert bool(said) == bool(notice)


@pytest.mark.parametrize("tokenizer", [None, Mute()])
def test_chat_needs_a_chat_template(tokenizer) -> None:
    with pytest.raises(InputError, match="no chat template; take template plain or alpaca"):
        choose_template("chat", [ALONE], tokenizer)
