"""What users of a trained model are told, because their prompts would not be those that it was trained on."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import processors

from bilevel.data import CHAT, PLAIN, Row, Tokenizer, encode_rows, load_tokenizer, train_tokenizer
from bilevel.data.usage import tokenizer_notices, usage_notices
from tests.data.chats import CHATML, chatty

ROWS = [Row("a:1", "Add  2 and 3.", "", "It is 5."), Row("a:2", "And\n1?", "", "One.")]


def said(tokenizer: Tokenizer, template=CHAT, rows=ROWS) -> list[str]:
    return usage_notices("pool", rows, encode_rows(rows, tokenizer, template, 128), tokenizer, template)


def ending_in(end: str) -> Tokenizer:
    """ChatML, with one of its marks as the tokenizer's end token."""
    tokenizer = chatty(CHATML)
    tokenizer.eos_token = end
    return tokenizer


def test_a_template_that_ends_as_the_tokenizer_does_needs_no_word() -> None:
    assert said(ending_in("<|im_end|>")) == []
    assert said(train_tokenizer(["a"], 259), PLAIN) == []


def test_another_end_than_the_tokenizers_is_said() -> None:
    (line,) = said(ending_in("</s>"))
    assert line.startswith("responses end in '<|im_end|>', not in the tokenizer's end token '</s>'")


def test_no_end_at_all_is_said() -> None:
    tokenizer = chatty("{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}")
    (line,) = said(tokenizer)
    assert "ends no response with the end token '</s>'" in line


def test_a_date_is_said() -> None:
    tokenizer = ending_in("<|im_end|>")
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + CHATML
    assert said(tokenizer) == ["the chat template asks for today's date; rows have 26 Jul 2024 on every day"]
    tokenizer.chat_template = "{% set format = '%Y' %}{{ strftime_now(format) }}" + CHATML
    (line,) = said(tokenizer)
    assert "will be other tokens on another day" in line


def test_tools_that_a_template_does_not_word_are_said() -> None:
    rows = [ROWS[0], Row("a:3", "Hi.", "", "Ho.", extra={"tools": [{"type": "function"}]})]
    assert said(train_tokenizer(["a"], 259), PLAIN, rows) == [
        "pool: 1 rows carry tools, which template plain does not word"
    ]


def test_an_end_token_behind_every_text_is_said() -> None:
    tokenizer = train_tokenizer(["a"], 259)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    (line,) = tokenizer_notices(ROWS, tokenizer)
    assert "puts '</s>' behind every text" in line


@pytest.mark.parametrize(("named", "differs"), [("PreTrainedTokenizerFast", False), ("GPT2Tokenizer", True)])
def test_a_class_that_reads_the_files_otherwise_is_said(
    named: str, differs: bool, shared_folder: Path, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shared_folder / "models" / "stories260k" / name, tmp_path / name)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": named}))
    lines = tokenizer_notices(ROWS, load_tokenizer(tmp_path))
    assert len(lines) == differs
    assert not differs or "names the class GPT2Tokenizer, which gives other tokens" in lines[0]
