"""What the main job refuses in one line, before anything is trained or written."""

from __future__ import annotations

import json

import pytest

import models
from models.folder import write_folder
from tests.experiments.runs import SMALL, refuses

ALONE = [*SMALL, "--baselines", "none"]


def test_an_estimator_that_does_not_suit_is_refused_before_anything_is_trained(tmp_path, capsys):
    refuses(["--hypergradient", "dense", "--width", "64"], "inner variables are more than", capsys, tmp_path)


def broken(tmp_path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


ROW = '{"instruction": "Add 1 and 1.", "output": "2"}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (ROW + '{"instruction": \n', "train.jsonl:2: broken JSON"),
        ('{"instruction": "Say no."}\n', "column 'output' is missing"),
        ("", "the file is empty"),
        ('{"instruction": "Say no.", "output": ""}\n' * 3, "only empty responses"),
        (ROW * 4, "batch size 16 is larger than the data (4 rows)"),
    ],
    ids=["missing", "broken", "column", "empty", "empty responses", "few rows"],
)
def test_unusable_training_rows(content, said, tmp_path, capsys):
    train = str(tmp_path / "train.jsonl") if content is None else broken(tmp_path, "train.jsonl", content)
    valid = broken(tmp_path, "valid.jsonl", ROW.replace("1", "2") * 16)
    refuses(["--train", train, "--valid", valid], said, capsys, tmp_path)


def test_validation_rows_that_are_all_training_rows(tmp_path, capsys):
    train = broken(tmp_path, "train.jsonl", ROW * 20)
    refuses(
        ["--train", train, "--valid", train],
        "all 20 validation rows stand in the training rows",
        capsys,
        tmp_path,
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "0"], "steps must be 1 or more"),
        (["--batch-rows", "64"], "batch size 64 is larger than the data (48 rows)"),
        (["--stepz", "3"], "--stepz"),
        (["--preset", "huge"], "huge"),
        (["--hypergradient", "magic"], "magic"),
        (["--train", "rows.jsonl"], "--valid"),
        (["--valid", "rows.jsonl"], "--train"),
        (["--tokenizer", "nowhere"], "no such folder"),
        (["--model", "nowhere"], "nowhere"),
        (["--corpus.shares.fault", "1.5"], "fault"),
        (["--vocab-size", "12"], "too small"),
        (["--heads", "3"], "heads"),
        (["--seed", "-1"], "seed"),
        (["--max-length", "2"], "maximum length"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unusable_flags(flags, said, tmp_path, capsys):
    refuses(flags, said, capsys, tmp_path)


def damaged_model(kind: str, folder) -> str:
    """A model folder with one thing wrong; returns what the error must say."""
    config = models.DecoderConfig(vocab_size=8, width=8, layers=1, heads=2, kv_heads=1, mlp_width=8)
    import jax

    write_folder(folder, config, models.init(config, jax.random.key(0)))
    described = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if kind == "no config":
        (folder / "config.json").unlink()
        return "config.json"
    if kind == "no weights":
        weights.unlink()
        return "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        return "model.safetensors"
    if kind == "unknown architecture":
        (folder / "config.json").write_text(json.dumps(described | {"model_type": "mamba"}))
        return "mamba"
    tokenizer = folder / "tokenizer"
    from bilevel.data import train_tokenizer

    train_tokenizer(["a b c"], 300).save_pretrained(tokenizer)
    (folder / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
    (folder / "tokenizer_config.json").write_text((tokenizer / "tokenizer_config.json").read_text())
    return "embedding only 8 rows"


@pytest.mark.parametrize(
    "kind", ["no config", "no weights", "truncated", "unknown architecture", "small embedding"]
)
def test_unusable_models(kind, tmp_path, capsys):
    said = damaged_model(kind, tmp_path / "model")
    refuses(["--model", str(tmp_path / "model")], said, capsys, tmp_path)
