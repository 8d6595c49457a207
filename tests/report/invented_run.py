"""A run folder as a run would leave it, with invented numbers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bilevel.data import EncodedRows, Row
from bilevel.runs.config_file import write_config
from bilevel.runs.metrics import MetricsWriter
from bilevel.runs.results import write_row_results
from bilevel.runs.run_facts import RunFacts, SetFacts, write_facts
from bilevel.runs.run_folder import write_environment, write_summary

METHODS = ("bds", "uniform", "direct_mixing", "validation_only", "clean_only")
RESULTS = {
    "bds": (0.3124, 0.8125, 0.9841, 0.8412, 1184.0),
    "uniform": (0.5412, 0.6211, None, None, 2000.0),
    "direct_mixing": (0.5127, 0.6602, None, None, 2000.0),
    "validation_only": (1.9241, 0.4102, None, None, None),
    "clean_only": (0.2987, 0.8398, None, None, None),
}
TIMES = [
    {"name": "other", "seconds": 3.5, "compiling": 0.5},
    {"name": "reading rows", "seconds": 0.2, "compiling": 0.0},
    {"name": "BDS: train", "seconds": 190.0, "compiling": 12.25},
    {"name": "BDS: select", "seconds": 0.1, "compiling": 0.0},
]
KEYS = ("test_loss", "test_exact_match", "fault_auc", "hard_auc", "effective_sample_size")


@dataclass(frozen=True)
class Weighting:
    rate: float = 0.3
    normalise: str = "softmax"


@dataclass(frozen=True)
class Settings:
    train: Path | None = None
    steps: int = 1500
    seed: int = 0
    run_dir: Path | None = None
    notes: str | None = None
    batch_size: int = 32
    weighting: Weighting = Weighting()


def as_pool(rows: Sequence[Row]) -> EncodedRows:
    """Rows as a data set, of tokens that nobody reads."""
    tokens = np.ones((len(rows), 1), np.int32)
    return EncodedRows(tuple(rows), tokens, tokens, tokens > 0)


def invent_rows(count: int, labelled: bool = True) -> list[Row]:
    """Rows of which two fifths are faulty, a twelfth hard and a twentieth twins."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        fault = hard = duplicate = ""
        draw = random.random()
        if draw < 0.4:
            fault = ("wrong_answer", "truncated", "off_topic")[int(draw / 0.4 * 3)]
        elif draw < 0.48:
            hard = "yes"
        elif draw < 0.53:
            duplicate = "corpus:1"
        labels = {"fault": fault, "kind": "reverse", "hard": hard, "duplicate": duplicate} if labelled else {}
        word = "".join(random.choice(list("abcdefghij"), 6))
        rows.append(
            Row(
                f"corpus:{number + 1}",
                "Write this word backwards.",
                word,
                "?" if fault else word[::-1],
                labels,
            )
        )
    return rows


def invent_weights(rows: list[Row]) -> np.ndarray:
    """Small for faulty rows, a little smaller for hard ones."""
    random = np.random.default_rng(1)
    middle = np.array(
        [-3.0 if row.labels.get("fault") else -0.3 if row.labels.get("hard") else 0.0 for row in rows]
    )
    weights = np.exp(middle + random.normal(0, 0.7, len(rows)))
    return weights / weights.sum()


def invent_run(
    folder: Path, rows: list[Row], methods: tuple[str, ...] = METHODS, steps: int = 1500, seed: int = 0
) -> None:
    """Writes every file that a report reads; runs of other seeds differ a little in every number."""
    random = np.random.default_rng(2 + seed)
    results = {method: dict(zip(KEYS, RESULTS[method], strict=True)) for method in methods}
    for line in results.values():
        line |= {key: value * (1 + 0.02 * seed) for key, value in line.items() if value is not None}
    write_summary(
        folder,
        {
            "experiment": "bds_alpaca",
            "preset": "tiny",
            "seed": seed,
            "seconds": 214.3,
            "steps": steps,
            "methods": results,
        },
    )
    write_config(folder, Settings(train=Path("data/rows.jsonl"), steps=steps, seed=seed))
    sets = {"pool": SetFacts("data/rows.jsonl", len(rows)), "validation": SetFacts("trusted.jsonl", 32)}
    write_facts(
        folder,
        RunFacts(
            "bds_alpaca", methods, methods[0], sets, parameters=48224, notices=["pool: 3 of 9 rows were cut"]
        ),
    )
    write_environment(folder)
    with MetricsWriter(folder, events=False) as metrics:
        for method in methods:
            goal = results[method]["test_loss"] or 0.3
            for step in range(0, steps, 5):
                course = 1 - np.exp(-step / 200)
                metrics.write(
                    method,
                    step,
                    {
                        "lower_loss": (5 + (goal - 5) * course) * np.exp(random.normal(0, 0.15)),
                        "upper_loss": (5 + (goal - 5) * course) * np.exp(random.normal(0, 0.05)),
                        "effective_sample_size": 2000 - 816 * course if method == "bds" else None,
                        "hypergradient_norm": 0.1,
                        "skipped_steps": 0,
                        "seconds": 0.01 * step,
                    },
                )
    weights = invent_weights(rows)
    signals = {
        "weight": weights,
        "loss_start": random.normal(5.0, 0.2, len(rows)),
        "loss_end": np.where(random.random(len(rows)) < 0.05, np.nan, np.log(1 + 0.001 / weights)),
    }
    write_row_results(folder, as_pool(rows), signals, np.argsort(-weights)[: len(rows) // 2])
    (folder / "timings.json").write_text(json.dumps([TIMES]))
    rejected = [
        {"id": "corpus:9", "instruction": "Say it.", "input": "", "output": "", "reason": "empty response"},
        {"id": "corpus:12", "instruction": "Say it.", "input": "", "output": "", "reason": "empty response"},
    ]
    text = "".join(
        json.dumps(row | {"remedy": "write an output or remove the row"}) + "\n" for row in rejected
    )
    (folder / "rejected.jsonl").write_text(text)
