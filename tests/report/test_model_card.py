import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bilevel.report.model_card import escape, write_model_card
from bilevel.runs.config_file import write_config
from bilevel.runs.run_facts import SetFacts, read_facts, write_facts
from bilevel.runs.run_folder import read_summary, write_summary
from tests.report.invented_run import Settings, invent_rows, invent_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    invent_run(folder, invent_rows(100), steps=10)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    return folder


def card(run: Path) -> ModelCard:
    return ModelCard.load(write_model_card(run))


def change_facts(run: Path, **changes: object) -> None:
    write_facts(run, replace(read_facts(run), **changes))


def test_the_header_is_read_by_the_hub_library(run: Path) -> None:
    data = card(run).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "license": "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["bilevel-lm", "bilevel-optimization", "data-selection", "bds"],
    }


def test_the_card_says_what_was_trained_on_what_with_which_weights(run: Path) -> None:
    text = card(run).text
    assert (
        "A llama language model of 48,224 parameters, trained from random weights, by BDS on 100 rows" in text
    )
    assert "answer to 32 trusted rows." in text
    assert "| pool | 100 | data/rows.jsonl | trained on, each row by its weight |" in text
    assert "- pool: 3 of 9 rows were cut" in text
    assert "of 100 rows (how many equally weighted rows the weights amount to)" in text
    assert "The heaviest tenth of the rows carries" in text
    assert "| off topic |" in text
    assert "| method | test loss ↓ | exact match ↑ | fault AUC ↑ | hard AUC ↑ | effective rows |" in text
    assert "| BDS | 0.3124 | 0.812 | 0.984 | 0.841 | 1184 |" in text
    assert "AutoModelForCausalLM.from_pretrained(" in text
    assert "| weighting.rate | 0.3 |" in text


def test_names_on_the_hub_stand_in_the_header_and_local_ones_do_not(run: Path, tmp_path: Path) -> None:
    sets = {
        "pool": SetFacts("tatsu-lab/alpaca:train", 100),
        "validation": SetFacts(str(tmp_path / "rows.jsonl"), 3),
    }
    change_facts(run, model="meta-llama/Llama-3.2-1B", sets=sets)
    data = card(run).data
    assert data.base_model == "meta-llama/Llama-3.2-1B"
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert data.datasets == ["tatsu-lab/alpaca"]
    local = tmp_path / "owner" / "model"
    local.mkdir(parents=True)
    change_facts(run, model=str(local))
    found = card(run)
    assert found.data.base_model is None
    assert "fine-tuned from model, by BDS" in found.text
    assert str(tmp_path) not in found.content


def test_the_license_is_that_of_a_base_model_that_names_one(run: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    change_facts(run, model=str(tmp_path))
    assert card(run).data.license == "apache-2.0"
    for broken in ("no header", "---\nlicense: [\n---\n", "---\nlicense: 3\n---\n"):
        (tmp_path / "README.md").write_text(broken)
        found = card(run)
        assert found.data.license == "unknown"
        assert "The license is unknown" in found.text


def test_adapters_say_how_peft_loads_them(run: Path) -> None:
    (run / "model" / "config.json").unlink()
    adapter = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    (run / "model" / "adapter_config.json").write_text(json.dumps(adapter))
    change_facts(run, model="owner/base-1b")
    found = card(run)
    assert found.data.library_name == "peft"
    assert found.data.to_dict()["base_model_relation"] == "adapter"
    assert 'from_pretrained("owner/base-1b")' in found.text
    assert "PeftModel.from_pretrained(base" in found.text
    assert "A LoRA adapter (rank 4 on q\\_proj, v\\_proj) of owner/base-1b, by BDS on 100 rows" in found.text


def test_prompts_are_shown_as_they_were_worded(run: Path) -> None:
    assert "worded like this" not in card(run).text
    change_facts(run, prompt="### Instruction:\n{instruction}\n```\n")
    assert "```text\n### Instruction:\n{instruction}\n'''" in card(run).text


def test_a_run_that_has_not_finished_has_a_card(run: Path) -> None:
    (run / "summary.json").unlink()
    assert "None: the run had not finished when this card was written." in card(run).text
    write_summary(run, {"methods": {"bds": {"test_loss": None}}})
    assert "None: there were no held-out rows to test on." in card(run).text
    (run / "weights.parquet").unlink()
    assert "The run wrote no weights." in card(run).text


def test_texts_of_a_run_cannot_become_part_of_the_card(run: Path) -> None:
    evil = "---\nlicense: mit\n# Title | [x](http://a.b) <img> `code`"
    change_facts(run, experiment=evil, notices=[evil], sets={evil: SetFacts(evil, 1)}, main=evil)
    write_config(run, Settings(train=Path(evil)))
    write_summary(run, read_summary(run) | {"experiment": evil, "preset": evil})
    found = card(run)
    assert found.data.license == "unknown"
    assert "\n# Title" not in found.text
    assert "[x](" not in found.text
    assert "<img>" not in found.text


def test_escaped_text_is_one_line() -> None:
    assert escape("a\n|b_c|  <d>") == r"a \|b\_c\| \<d\>"
