"""Wording around rows."""

import pytest

from bilevel.data import ALPACA, PLAIN, Row, get_template
from bilevel.errors import InputError

ALONE = Row("a:1", "Name a color.", "", "Red.")
WITH_INPUT = Row("a:2", "Add {these}.", "1 {2}", "3")


def test_alpaca_wording_is_the_original() -> None:
    assert ALPACA(ALONE) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nName a color.\n\n### Response:",
        "Red.",
    )
    assert ALPACA(WITH_INPUT) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd {these}.\n\n### Input:\n1 {2}\n\n### Response:",
        "3",
    )


def test_plain_wording() -> None:
    assert PLAIN(ALONE) == ("Name a color.\n", "Red.")
    assert PLAIN(WITH_INPUT) == ("Add {these}.\n1 {2}\n", "3")


def test_a_blank_input_is_no_input() -> None:
    assert PLAIN.prompt(Row("a:1", "Go.", " \n", "x")) == "Go.\n"


def test_templates_are_found_by_name() -> None:
    assert get_template("plain") is PLAIN
    with pytest.raises(InputError, match="unknown template 'chat'; choose one of alpaca, plain"):
        get_template("chat")
