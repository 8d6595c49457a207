"""Tokenizers from folders and from texts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bilevel.data import (
    check_vocabulary,
    encode_documents,
    encode_rows,
    get_template,
    load_tokenizer,
    train_tokenizer,
)
from bilevel.data.rows import Row
from bilevel.data.tokenizer import end_tokens, start_tokens
from bilevel.errors import InputError

TEXTS = ["What is the plural of cat? cats", "What is the plural of dog? dogs", "Grüße an alle"] * 3


def test_any_text_comes_back_unchanged() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    everything = "".join(map(chr, range(1, 0x2FF))) + "\U0001f600 日本 \u200b\r\n\t  end "
    for text in (everything, "What is the plural of cat?", " leading", "trailing  "):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_every_byte_has_a_token_and_ids_are_dense() -> None:
    vocabulary = train_tokenizer(["ab"], 400).get_vocab()
    assert (vocabulary["<s>"], vocabulary["</s>"], vocabulary["<pad>"]) == (0, 1, 2)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert 259 <= len(vocabulary) <= 261


def test_merges_shorten_the_texts_they_were_learnt_from() -> None:
    text = TEXTS[0]
    small, large = (train_tokenizer(TEXTS, size) for size in (259, 280))
    # Each call puts the start token in front.
    assert len(small(text)["input_ids"]) == len(text) + 1
    assert len(large(text)["input_ids"]) < len(text) / 2
    assert len(large.get_vocab()) == 280


def test_training_is_deterministic_in_any_process(tmp_path: Path) -> None:
    script = (
        "import sys, json; from bilevel.data import train_tokenizer; "
        "print(json.dumps(train_tokenizer(json.loads(sys.argv[1]), 300).get_vocab(), sort_keys=True))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", script, json.dumps(TEXTS)], check=True, capture_output=True, text=True
    ).stdout
    assert json.loads(elsewhere) == train_tokenizer(TEXTS, 300).get_vocab()


def test_a_trained_tokenizer_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.bos_token_id, loaded.eos_token_id) == (0, 1)
    assert loaded("the dogs é")["input_ids"] == tokenizer("the dogs é")["input_ids"]


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(
        InputError, match="a vocabulary of 200 is too small for byte-level BPE; give 259 or more"
    ):
        train_tokenizer(TEXTS, 200)


def test_the_embedding_must_hold_every_token() -> None:
    tokenizer = train_tokenizer(TEXTS, 280)
    check_vocabulary(tokenizer, 280)
    with pytest.raises(
        InputError, match="tokenizer has 280 tokens, but the model's embedding only 279 rows; use the"
    ):
        check_vocabulary(tokenizer, 279)


def test_unusable_folders_are_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"nowhere: no such folder; name the folder that holds tokenizer.json"
    ):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"there is no tokenizer.json; save a fast tokenizer there"):
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text("{")
    with pytest.raises(InputError, match="this is a file, not a folder"):
        load_tokenizer(file)
    with pytest.raises(InputError, match=r"the tokenizer cannot be read \(.*\); copy its files again"):
        load_tokenizer(tmp_path)
    file.write_text('{"model": {"type": "no such model"}}')
    with pytest.raises(InputError, match=r"the tokenizer cannot be read \(.*\); copy its files again"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_end_token_is_refused(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(
        InputError, match='no end token; name a token of its vocabulary as "eos_token" in tokenizer_co'
    ):
        load_tokenizer(tmp_path)


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": [None, "trap.Trap"]}, "tokenizer_class": "Trap"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: pass\n")
    assert load_tokenizer(tmp_path).eos_token_id == 1
    assert not (tmp_path / "sprung").exists()


def test_real_folders(shared_folder: Path) -> None:
    stories = load_tokenizer(shared_folder / "models" / "stories260k")
    assert (stories.bos_token_id, stories.eos_token_id) == (1, 2)
    check_vocabulary(stories, 512)
    gpt2 = load_tokenizer(shared_folder / "tokenizers" / "gpt2")
    assert gpt2("Hello world")["input_ids"] == [15496, 995]
    with pytest.raises(InputError, match="50257 tokens"):
        check_vocabulary(gpt2, 512)


def test_what_is_trained_starts_as_the_tokenizers_own_call_does(shared_folder: Path) -> None:
    gpt2 = load_tokenizer(shared_folder / "tokenizers" / "gpt2")
    assert gpt2.bos_token_id is not None  # named, and never put in front
    for tokenizer, start in ((train_tokenizer(TEXTS, 300), [0]), (gpt2, [])):
        assert (start_tokens(tokenizer), end_tokens(tokenizer)) == (start, [])
        row = Row("a:1", "Say hello.", "", "Hello.")
        rows = encode_rows([row], tokenizer, get_template("plain"), 64).encoded
        prompt = rows.tokens[0, : np.argmax(rows.loss_mask[0])].tolist()
        assert prompt == tokenizer("Say hello.\n")["input_ids"]
        document = Row("a:1", "", "", "Say hello.", form="text")
        pieces = encode_documents([document], tokenizer, 64).encoded
        assert pieces.tokens[0, : pieces.lengths[0] - 1].tolist() == tokenizer("Say hello.")["input_ids"]
