"""`model/README.md`: a model card that says what was trained on what, with which weights."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from bilevel.report.label_table import label_groups, label_table
from bilevel.report.page import flat
from bilevel.report.run_files import RunFiles, read_run
from bilevel.report.run_parts import HEAVIEST, results_table
from bilevel.report.table import method_title
from bilevel.storage.atomic import write_atomically
from bilevel.weighting.statistics import effective_sample_size, heaviest_share

FILE = "README.md"
MODEL = "model"
ROLES = {
    "pool": "trained on, each row by its weight",
    "validation": "trusted rows, which the weights answer to",
    "test": "held out, for the results alone",
}
LOCAL_SETTINGS = ("run", "run_dir")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = frozenset({".json", ".jsonl", ".parquet", ".csv", ".tsv", ".txt", ".gz"})
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def write_model_card(folder: Path) -> Path:
    """Writes the card of the model or adapter that stands in a run folder.

    Its header is Hugging Face's: `library_name`, `tags`, `pipeline_tag`, `license`, and where they are names on the
    hub `base_model` and `datasets`. The license is the base model's where its folder says one, else "unknown".

    Args:
        folder: the run folder, finished or not, with `model/` in it.

    Returns:
        The card's path.

    Raises:
        InputError: a file of the run is broken.
    """
    run = read_run(folder)
    model = folder / MODEL
    described = _read_object(model / "config.json")
    adapter = _read_object(model / "adapter_config.json")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = templates.get_template("model_card.md").render(_content(run, described, adapter))
    text = re.sub(r"\n{3,}", "\n\n", text)
    write_atomically(model / FILE, f"---\n{_header(run, adapter)}\n---\n\n{text}")
    return model / FILE


def _header(run: RunFiles, adapter: Mapping[str, Any]) -> str:
    # Imported here: it takes a while, and reports do without it.
    from huggingface_hub import ModelCardData

    base = _hub_name(run.facts.model)
    datasets = [name for facts in run.facts.sets.values() if (name := _hub_name(facts.source))]
    return ModelCardData(
        license=_license(run.facts.model),
        base_model=base,
        base_model_relation=None if base is None else "adapter" if adapter else "finetune",
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        datasets=list(dict.fromkeys(datasets)) or None,
        tags=list(dict.fromkeys(["bilevel-lm", "bilevel-optimization", "data-selection", _tag(run.main)])),
    ).to_yaml()


def _content(run: RunFiles, described: Mapping[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    table = results_table(run.results)
    config = {key: value for key, value in run.config.items() if key not in LOCAL_SETTINGS}
    labels = label_table(run.weights, label_groups(run.weights))[1] if "weight" in run.weights else []
    return {
        "title": escape(run.title),
        "summary": _summary(run, described, adapter),
        "sets": [
            {
                "name": escape(name),
                "rows": f"{facts.rows:,}",
                "source": escape(_public(facts.source)),
                "role": ROLES.get(name, "–"),
            }
            for name, facts in run.facts.sets.items()
        ],
        "notices": [escape(notice) for notice in run.facts.notices],
        "weights": _weights(run),
        "labels": [[escape(cell) for cell in line[:3]] for line in labels] if len(labels) > 1 else [],
        "finished": run.finished,
        "columns": table["columns"],
        "results": table["results"] if table["columns"] else [],
        "results_note": _results_note(run),
        "code": _code(run, adapter),
        "prompt": run.facts.prompt.replace("```", "'''"),
        "limits": _limits(run),
        "settings": [(escape(key), escape(_public(value))) for key, value in flat(config)],
        "version": run.environment.get("packages", {}).get("bilevel-lm", ""),
    }


def _summary(run: RunFiles, described: Mapping[str, Any], adapter: Mapping[str, Any]) -> str:
    base = escape(_public(run.facts.model))
    if adapter:
        ranks = f"rank {adapter.get('r')} on {', '.join(adapter.get('target_modules') or ())}"
        what = f"A LoRA adapter ({escape(ranks)}) of {base or 'a model from random weights'}"
    else:
        kind = f"{escape(described['model_type'])} " if "model_type" in described else ""
        origin = f"fine-tuned from {base}" if base else "trained from random weights"
        what = f"A {kind}language model of {run.facts.parameters:,} parameters, {origin}"
    sets = run.facts.sets
    rows = f" on {sets['pool'].rows:,} rows" if "pool" in sets else ""
    answer = (
        f"; the rows' weights answer to {sets['validation'].rows:,} trusted rows"
        if "validation" in sets
        else ""
    )
    steps = f" in {run.summary['steps']:,} steps" if "steps" in run.summary else ""
    return f"{what}, by {escape(method_title(run.main))}{rows}{steps}{answer}."


def _weights(run: RunFiles) -> list[str]:
    if "weight" not in run.weights or not len(run.weights["weight"]):
        return ["The run wrote no weights."]
    weights = run.weights["weight"]
    said = [
        f"Method: {escape(method_title(run.main))}. The run's weights.parquet holds the weight of each row."
    ]
    effective = float(effective_sample_size(weights))
    said.append(
        f"Effective sample size: {effective:,.0f} of {len(weights):,} rows (how many equally weighted rows the weights "
        "amount to)."
    )
    share = heaviest_share(weights, HEAVIEST)
    if share is not None:
        said.append(f"The heaviest tenth of the rows carries {share:.0%} of the weight.")
    return said


def _results_note(run: RunFiles) -> str:
    columns = {column.key for column in results_table(run.results)["columns"]}
    said = []
    if columns & {"test_loss", "test_exact_match"}:
        said.append(
            "Measured on the held-out rows: loss in nats a token, mean over rows; exact match is teacher-forced. The "
            "other methods started from the same model."
        )
    if columns & {"fault_auc", "hard_auc"}:
        said.append(
            "Fault and hard AUC: how often a faulty row weighs less than a plain clean row, or than a hard one."
        )
    return " ".join(said)


def _code(run: RunFiles, adapter: Mapping[str, Any]) -> str:
    if not adapter:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
        )
    base = json.dumps(_hub_name(run.facts.model) or "path/to/the/base/model")
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base})\n"
        'model = PeftModel.from_pretrained(base, "path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
    )


def _limits(run: RunFiles) -> list[str]:
    said = [
        "Weights say how rows serve the trusted rows under this model and these settings, not how good rows are in "
        "general; what the trusted rows do not cover is weighed by accident.",
        "Rows that are rare and right can lose weight as faulty ones do.",
        "Nothing was measured beyond the results above: no safety, no bias, no other tasks.",
    ]
    if not run.facts.model:
        said.append("The model began from random weights and knows nothing but its training rows.")
    if _license(run.facts.model) == "unknown":
        said.append("The license is unknown: those of the base model and of the rows apply.")
    return said


def _license(model: str) -> str:
    """The license that the card of a local base model names."""
    card = Path(model) / FILE
    if not model or not card.is_file():
        return "unknown"
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(card) or {}).get("license")
    except (yaml.YAMLError, ValueError, OSError):
        return "unknown"
    return found if isinstance(found, str) and found else "unknown"


def _hub_name(source: str) -> str | None:
    """A name on the hub; None for local files and folders."""
    name = source.partition(":")[0]
    local = Path(name).exists() or Path(name).suffix in _FILES
    return name if _HUB_NAME.fullmatch(name) and not local else None


def _public(text: str) -> str:
    """A local path without the folders above, which tell nothing to others."""
    return Path(text).name if text.startswith(("/", "~", "../")) or re.match(r"[A-Za-z]:\\", text) else text


def escape(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def _tag(method: str) -> str:
    return method.replace("_", "-") or "fine-tuning"


def _read_object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
