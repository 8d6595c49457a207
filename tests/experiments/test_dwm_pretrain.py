"""Pre-training on plain text at its smallest size, and what its network does afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bilevel.check import main as check_main
from bilevel.data import read_documents
from bilevel.report.sections import read_sections
from bilevel.runs.weights import read_weights
from bilevel.storage.snapshots import read_snapshots
from experiments.dwm_filter import main as filter_main
from experiments.dwm_pretrain import main
from experiments.transfer import main as transfer_main
from models.folder import read_folder
from tests.experiments.runs import same_run, stop_when_asked

TRAINING = [
    *("--steps", "6", "--batch-rows", "16", "--upper-rows", "16", "--packing", "off", "--max-length", "32"),
    *("--width", "16", "--layers", "1", "--heads", "2", "--kv-heads", "1", "--mlp-width", "16"),
    *("--baselines", "none"),
]
# A network of relative losses compiles fastest.
SMALL = [
    *TRAINING,
    *("--dwm.stages", "2", "--dwm.hypergradient-steps", "2", "--dwm.model-steps", "virtual"),
    *("--dwm.network", "relative_loss"),
]
CORPUS = ["--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16"]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A run on the embedded text."""
    folder = tmp_path_factory.mktemp("embedded") / "run"
    assert main([*SMALL, *CORPUS, "--run-dir", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_a_run_with_a_population_that_is_stopped_between_its_stages_ends_as_the_one_that_was_not(
    tmp_path, monkeypatch
):
    flags = [*SMALL, *CORPUS, "--population", "2", "--reset-every", "2"]
    assert main([*flags, "--run-dir", "whole"]) == 0
    with monkeypatch.context() as patch:
        stop_when_asked(patch, 9)
        assert main([*flags, "--run-dir", "run"]) == 143
    assert main(["--resume", "run"]) == 0
    same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_leaves_weights_by_stage_and_source_and_a_model(embedded):
    columns = read_weights(embedded / "weights.parquet")
    assert {"weight_2", "loss_0", "loss_1", "loss_2", "length", "duplication", "source"} <= set(columns)
    assert "weight_1" not in columns
    assert {"textbook", "forum", "scan", "boilerplate"} <= set(columns["source"])
    assert np.ptp(columns["weight_2"]) > 0
    summary = json.loads((embedded / "summary.json").read_text())
    assert summary["methods"]["dwm"]["test_loss"] > 0
    assert read_folder(embedded / "model")[0].width == 16


def test_selected_documents_can_be_trained_on_again(embedded):
    selected = read_documents(embedded / "selected.jsonl")
    assert len(selected.rows) == 24
    assert selected.rejected == ()
    assert {"textbook"} <= {row.extra["source"] for row in selected.rows}


def test_the_report_shows_what_the_weights_prefer(embedded):
    sections = dict(read_sections(embedded))
    assert sections["dwm"].tables[0].columns == ["signal", "stage 2"]
    assert "What the weights prefer" in (embedded / "report.html").read_text()
    lines = [json.loads(line) for line in (embedded / "metrics.jsonl").read_text().splitlines()]
    assert any("prefers/entropy" in line for line in lines)


def test_snapshots_of_text_know_that_they_read_text(embedded):
    first, second = read_snapshots(embedded)
    assert (first.info.template, second.info.batch_rows) == ("", 16)
    assert second.info.trained_on["experiment"] == "dwm_pretrain"


@pytest.mark.slow
def test_it_weights_another_model_on_text_it_never_saw(embedded, tmp_path, capsys):
    flags = [*TRAINING, *CORPUS, "--width", "32", "--seed", "5", "--weighting", str(embedded)]
    assert transfer_main([*flags, "--run-dir", "wide"]) == 0
    summary = json.loads((tmp_path / "wide/summary.json").read_text())
    assert list(summary["methods"]) == ["transferred"]
    assert read_folder(tmp_path / "wide/model")[0].width == 32
    assert np.ptp(read_weights(tmp_path / "wide/weights.parquet")["weight"]) > 0
    table = capsys.readouterr().out
    assert "boilerplate" in table


def test_its_filter_keeps_documents_of_a_text_file(embedded, files):
    flags = ["--weighting", str(embedded), "--data", "stories.txt", "--keep", "0.5", "--run-dir", "kept"]
    assert filter_main(flags) == 0
    kept = read_documents(files / "kept" / "kept.txt").rows
    originals = {row.output for row in read_documents(files / "stories.txt").rows}
    assert len(kept) == 9
    assert {row.output for row in kept} <= originals
    assert len(read_weights(files / "kept" / "weights.parquet")["score"]) == 18


@pytest.mark.slow
def test_a_run_is_checked_where_it_stands(embedded, capsys):
    assert check_main([str(embedded), "--directions", "2", "--horizon", "1"]) == 0
    said = capsys.readouterr().out
    assert "optimizer_aware, against the next step" in said
    # At the end of so short a run the learning rate is near 0, and float32 rounds most of a difference away.
    assert "Accurate" in said or "Right direction" in said


STORIES = "\n<|endoftext|>\n".join(
    f"One day, {name} saw a {thing}.\n\nIt was a {colour} {thing}."
    for name in ("Tom", "Ann", "Sue")
    for thing in ("cat", "dog", "boat")
    for colour in ("red", "big")
)
ARTICLES = "\n\n".join(f"The {n} of the {m} is {n + m}." for n in range(6) for m in range(4))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "stories.txt").write_text(STORIES)
    (tmp_path / "articles.txt").write_text(ARTICLES)
    passages = [
        {"context": f"{name} saw a dog. It was a big", "continuation": "dog"}
        for name in "abcdefghijklmnopqrstuvwxyz"
    ] + [{"context": f"{name} saw a cat. It was a red", "continuation": "cat"} for name in "abcdefghijklmno"]
    (tmp_path / "passages.jsonl").write_text("\n".join(json.dumps(passage) for passage in passages))
    return tmp_path


TEXT = ["--train", "stories.txt, articles.txt", "--valid", "passages.jsonl"]


@pytest.mark.slow
def test_own_text_of_several_sources(files, capsys):
    assert main([*SMALL, *TEXT, "--run-dir", "own"]) == 0
    said = capsys.readouterr()
    assert (
        "41 passages are split in two by the seed: 20 for the upper level, 21 for the final table" in said.err
    )
    assert "pool: articles 24, stories 18" in said.err
    table = said.out.splitlines()
    assert any(line.startswith("articles") for line in table)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--train", "stories.txt"], "name a file of them with --valid"),
        (["--valid", "passages.jsonl"], "--valid and --test go with --train"),
        (["--train", "stories.txt,missing.txt", "--valid", "passages.jsonl"], "missing.txt: no such file"),
        (
            ["--train", "stories.txt,stories.txt", "--valid", "passages.jsonl"],
            "two files give a document the id",
        ),
        (["--train", "passages.jsonl", "--valid", "passages.jsonl"], "no column 'text'"),
        (["--train", "stories.txt", "--valid", "one.txt"], "cannot be split"),
        ([*CORPUS, "--population", "0"], "population must be 1 or more"),
        ([*CORPUS, "--reset-every", "4"], "give --population 2 or more"),
        ([*CORPUS, "--population", "3", "--reset-every", "2"], "at least the number of members"),
        ([*CORPUS, "--population", "2", "--dwm.model-steps", "committed"], "must be virtual"),
        ([*CORPUS, "--dwm.hypergradient-steps", "0"], "hypergradient_steps must be 1 or more"),
        ([*CORPUS, "--dwm.stages", "0"], "stages must be 1 or more"),
        ([*CORPUS, "--dwm.floor", "1"], "floor must be in [0, 1)"),
        ([*CORPUS, "--corpus.shares.scan", "2"], "share scan is 2"),
        ([*CORPUS, "--max-length", "2"], "leaves no room for text"),
        ([*CORPUS, "--batch-rows", "64"], "larger than the data"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_unusable_flags(flags, said, files, capsys):
    (files / "one.txt").write_text("Only one passage.")
    assert main([*SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (files / "runs").exists()
