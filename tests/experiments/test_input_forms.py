"""The same real rows in every form and from every kind of source: the same rows accepted, the same losses."""

import csv
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

import models
from bilevel.errors import InputError
from bilevel.objectives import response_losses
from experiments.loading import Inputs, load_rows
from experiments.options import CorpusOptions, DataOptions, ModelOptions
from models.folder import read_folder

CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ':\n' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)


def question(record: dict) -> str:
    return "\n".join(text for text in (record["instruction"], record["input"]) if text)


def renamed(instruction: str, output: str, context: str = ""):
    def rewrite(record: dict) -> dict:
        if context:
            return {instruction: record["instruction"], context: record["input"], output: record["output"]}
        return {instruction: question(record), output: record["output"]}

    return rewrite


def conversation(column: str, role: str, content: str, user: str, assistant: str):
    def rewrite(record: dict) -> dict:
        turns = ((user, question(record)), (assistant, record["output"]))
        return {column: [{role: speaker, content: text} for speaker, text in turns]}

    return rewrite


FORMS = {
    "alpaca": renamed("instruction", "output", "input"),
    "dolly": renamed("instruction", "response", "context"),
    "completion": renamed("prompt", "completion"),
    "response": renamed("prompt", "response"),
    "answer": renamed("question", "answer"),
    "messages": conversation("messages", "role", "content", "user", "assistant"),
    "sharegpt": conversation("conversations", "from", "value", "human", "gpt"),
}


def as_table(path: Path, records: list[dict]) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), path)


def as_csv(path: Path, records: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


def as_lines(path: Path, records: list[dict]) -> None:
    path.write_text("\n".join(map(json.dumps, records)))


def as_folder(path: Path, records: list[dict]) -> None:
    """A copy of a dataset as it stands on the hub."""
    (path / "data").mkdir(parents=True)
    as_table(path / "data" / "train-00000-of-00001.parquet", records)
    (path / "README.md").write_text("---\nlicense: cc-by-sa-3.0\n---\n# Rows\n")


SOURCES = {
    "rows.jsonl": as_lines,
    "rows.json": lambda path, records: path.write_text(json.dumps(records)),
    "rows.parquet": as_table,
    "rows.csv": as_csv,
    "folder": as_folder,
}


@pytest.fixture(scope="module")
def records(shared_folder: Path) -> list[dict]:
    lines = (shared_folder / "data" / "pool_dolly_short.jsonl").read_text().split("\n")[:200]
    found = [json.loads(line) for line in lines]
    found[7] |= {"output": ""}  # in every form the same row is refused
    return found


@pytest.fixture(scope="module")
def model(shared_folder: Path, tmp_path_factory) -> Path:
    """A real model whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(shared_folder / "models" / "stories260k", folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


@pytest.fixture(scope="module")
def valid(shared_folder: Path, tmp_path_factory) -> Path:
    lines = (shared_folder / "data" / "val_dolly_good_600.jsonl").read_text().split("\n")
    path = tmp_path_factory.mktemp("valid") / "valid.jsonl"
    path.write_text("\n".join(lines[:16]))
    return path


def loaded(source: Path, valid: Path, model: Path, template: str) -> Inputs:
    data = DataOptions(train=str(source), valid=str(valid), template=template, max_length=64)
    return load_rows(data, CorpusOptions(), ModelOptions(model=model), seed=0)


@pytest.fixture(scope="module")
def row_losses(model: Path):
    """Row losses of an encoded set, compiled once."""
    config, params = read_folder(model)
    compiled = jax.jit(response_losses(lambda params, batch: models.token_scores(params, batch, config)))
    return lambda rows: np.asarray(compiled(params, rows.batch(np.arange(len(rows)))).means)


@pytest.fixture(scope="module")
def expected(records, model, row_losses, valid, tmp_path_factory):
    """Rows and losses of the file as it stands, by template."""
    path = tmp_path_factory.mktemp("expected") / "rows.jsonl"
    as_lines(path, records)
    pools = {name: loaded(path, valid, model, name).data["pool"] for name in ("plain", "chat")}
    return {name: (pool, row_losses(pool)) for name, pool in pools.items()}


@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize(
    ("form", "name"),
    [
        *((form, "rows.jsonl") for form in FORMS),
        *(("completion", name) for name in SOURCES),
        *(("messages", name) for name in ("rows.parquet", "folder")),
    ],
)
def test_every_form_gives_the_same_rows_and_losses(
    form, name, template, records, model, expected, row_losses, valid, tmp_path
) -> None:
    SOURCES[name](tmp_path / name, [FORMS[form](record) for record in records])
    inputs = loaded(tmp_path / name, valid, model, template)
    pool, (reference, losses) = inputs.data["pool"], expected[template]
    assert len(pool) == 199
    assert [row.pair_key for row in pool.rows] == [row.pair_key for row in reference.rows]
    assert [item.id.rpartition(":")[2] for item in inputs.data.rejected] == ["8"]
    np.testing.assert_array_equal(pool.tokens, reference.tokens)
    np.testing.assert_array_equal(pool.loss_mask, reference.loss_mask)
    np.testing.assert_array_equal(row_losses(pool), losses)
    assert np.all(losses > 0)


def test_what_was_recognised_is_said(records, model, valid, tmp_path) -> None:
    as_lines(tmp_path / "rows.jsonl", [FORMS["messages"](record) for record in records])
    notices = loaded(tmp_path / "rows.jsonl", valid, model, "auto").data.notices
    assert notices[:3] == (
        "rows.jsonl: 200 rows, chat messages",
        "template chat, the tokenizer's own, since the rows are conversations",
        "valid.jsonl: 16 rows, Alpaca columns (instruction, input, output)",
    )
    assert notices[3] == "pool: 1 of 200 rows rejected (empty response); see rejected.jsonl"
    assert notices[4].startswith("pool: ")
    assert "lost part of their prompt" in notices[4]


def test_the_chat_template_must_be_there(records, valid, shared_folder, tmp_path) -> None:
    as_lines(tmp_path / "rows.jsonl", records)
    with pytest.raises(InputError, match="the tokenizer has no chat template; take template plain"):
        loaded(tmp_path / "rows.jsonl", valid, shared_folder / "models" / "stories260k", "chat")
