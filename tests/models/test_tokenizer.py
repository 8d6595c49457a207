"""Tokenizer files beside a model: copied as they are, and mended where other readers would stumble."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import models
from models.folder import CONFIG
from models.tokenizer import read_tokenizer, write_tokenizer
from tests.models.folders import TIED, edit_config, params_of

SETTINGS = {
    "tokenizer_class": "LlamaTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
    "additional_special_tokens": ["<mark>"],
    "added_tokens_decoder": {
        "7": {
            "content": "<mark>",
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
    },
}


def words() -> Tokenizer:
    names = ["<unk>", "a", "b", "c", "d", "<s>", "</s>"]
    return Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model folder as somebody published it."""
    folder = tmp_path / "source"
    models.write_folder(folder, TIED, params_of(TIED))
    edit_config(folder, bos_token_id=5, eos_token_id=[6, 3], pad_token_id=None)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 3], "temperature": 0.6}))
    words().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    return folder


KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "additional_chat_templates/tool_use.jinja",
    "generation_config.json",
    "LICENSE.txt",
)


@pytest.mark.parametrize("given", [False, True])
def test_a_sources_files_are_copied_as_they_are(source: Path, given: bool, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(source) if given else None
    if given:
        tokenizer(["a b c"], max_length=2, truncation=True)  # leaves no trace
    models.write_folder(tmp_path / "copy", TIED, params_of(TIED), source=source, tokenizer=tokenizer)
    for name in KEPT:
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    before, after = (json.loads((folder / CONFIG).read_text()) for folder in (source, tmp_path / "copy"))
    assert after == before
    assert not (tmp_path / "copy" / "modeling_own.py").exists()


def test_an_adapters_tokenizer_is_the_models(source: Path, tmp_path: Path) -> None:
    write_tokenizer(read_tokenizer(source), tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == (
        source / "tokenizer_config.json"
    ).read_bytes()


def test_a_changed_tokenizer_keeps_what_the_change_leaves(source: Path, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<mark>", "<other>"]})
    write_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "LlamaTokenizerFast"
    assert settings["add_bos_token"] is True
    assert settings["additional_special_tokens"] == ["<mark>", "<other>"]
    # A list under this name is what earlier versions of transformers cannot read.
    assert "extra_special_tokens" not in settings
    assert read_tokenizer(tmp_path)("<other>")["input_ids"] == tokenizer("<other>")["input_ids"]


def test_a_tokenizer_of_no_folder_has_a_class_that_every_reader_knows(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words(), eos_token="</s>"), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read_tokenizer(tmp_path).eos_token_id == 6


def test_another_tokenizer_changes_the_tokens_that_it_alone_has(source: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(
        tokenizer_object=words(), bos_token="<s>", eos_token="</s>", pad_token="d"
    )
    models.write_folder(tmp_path / "copy", TIED, params_of(TIED), source=source, tokenizer=other)
    after = json.loads((tmp_path / "copy" / CONFIG).read_text())
    assert (after["bos_token_id"], after["eos_token_id"], after["pad_token_id"]) == (5, [6, 3], 4)
    ends = PreTrainedTokenizerFast(tokenizer_object=words(), bos_token="<s>", eos_token="c")
    edit_config(source, eos_token_id=6)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 6, "temperature": 0.6}))
    models.write_folder(tmp_path / "second", TIED, params_of(TIED), source=source, tokenizer=ends)
    assert json.loads((tmp_path / "second" / CONFIG).read_text())["eos_token_id"] == 3
    generation = json.loads((tmp_path / "second" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 3, "temperature": 0.6}
