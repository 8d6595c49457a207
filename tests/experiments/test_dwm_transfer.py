"""A network that one run has trained: it weights other runs, and filters files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from bilevel.data import read_rows, train_tokenizer, write_rows
from bilevel.data.corpus import make_corpus
from bilevel.report.sections import read_sections
from bilevel.runs.metrics import read_metrics
from bilevel.runs.weights import read_weights
from bilevel.storage.snapshots import read_snapshots, write_snapshot
from experiments.dwm_alpaca import main as dwm_main
from experiments.dwm_filter import main as filter_main
from experiments.transfer import main as transfer_main
from experiments.transfer_config import presets_for
from models.folder import read_folder

# Programs for packed batches of two sizes take twice as long to compile; the run of BDS has them.
TRAINING = ["--steps", "6", "--batch-rows", "16", "--upper-rows", "16", "--packing", "off"]
MODEL = ["--layers", "1", "--heads", "2", "--kv-heads", "1", "--mlp-width", "16"]
CORPUS = ["--corpus.rows", "48", "--corpus.valid", "16", "--corpus.test", "16"]
DWM = [
    *(
        "--dwm.stages",
        "2",
        "--dwm.hypergradient-steps",
        "2",
        "--baselines",
        "none",
    ),
    *("--dwm.encoder.width", "8", "--dwm.encoder.heads", "2", "--dwm.encoder.mlp-width", "8"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of DWM whose network reads relative losses, which compiles fastest."""
    folder = tmp_path_factory.mktemp("source") / "run"
    assert dwm_main([*TRAINING, *MODEL, *CORPUS, *DWM, "--width", "16", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def network(source, tmp_path_factory):
    """A snapshot of a network that reads tokens, its parameters drawn."""
    folder = tmp_path_factory.mktemp("network") / "snapshot"
    made(source, folder, reads="tokens")
    return folder


def test_a_run_leaves_its_stages_and_preferences(source):
    snapshots = read_snapshots(source)
    assert [(s.info.stage, s.info.template) for s in snapshots] == [(1, "plain"), (2, "plain")]
    assert snapshots[1].info.trained_on == {
        "rows": 48,
        "experiment": "dwm_alpaca",
        "train": None,
        "valid": None,
        "seed": 0,
    }
    assert "weight_2" in read_weights(source / "weights.parquet")
    assert [section.title for _, section in read_sections(source)] == ["What the weights prefer"]


@pytest.mark.slow
def test_it_weights_a_model_twice_as_wide_on_rows_it_never_saw(source, tmp_path):
    flags = [*TRAINING, *MODEL, *CORPUS, "--width", "32", "--seed", "5", "--weighting", str(source)]
    assert transfer_main([*flags, "--run-dir", "wide"]) == 0
    summary = json.loads((tmp_path / "wide/summary.json").read_text())
    assert list(summary["methods"]) == ["transferred", "uniform", "clean_only"]
    assert summary["methods"]["transferred"]["fault_auc"] is not None
    assert read_folder(tmp_path / "wide/model")[0].width == 32
    weights = read_weights(tmp_path / "wide/weights.parquet")
    assert weights["id"][0] == "corpus-train:1"
    assert np.ptp(weights["weight"]) > 0
    # No bilevel cost: no step of the run estimated a hypergradient.
    lines = read_metrics(tmp_path / "wide")["transferred"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert not any("hypergradient_norm" in line for line in lines)


def test_it_weights_another_method_s_selection_in_another_wording(source, bds_run, tmp_path, capsys):
    write_rows(tmp_path / "valid.jsonl", make_corpus(7, 40, 16, 16).valid)
    flags = [*TRAINING, *MODEL, "--width", "16", "--baselines", "none", "--max-length", "96"]
    selected = ["--train", str(bds_run / "selected.jsonl"), "--valid", "valid.jsonl", "--template", "alpaca"]
    assert transfer_main([*flags, *selected, "--weighting", f"{source}/last", "--run-dir", "own"]) == 0
    assert "--template plain words them alike" in capsys.readouterr().err
    weights = read_weights(tmp_path / "own/weights.parquet")
    assert len(weights["id"]) == 24
    assert list(json.loads((tmp_path / "own/summary.json").read_text())["methods"]) == ["transferred"]


@pytest.fixture
def rows(tmp_path):
    corpus = make_corpus(3, rows=40, valid=16, test=16)
    path = tmp_path / "rows.jsonl"
    write_rows(path, corpus.train)
    with path.open("a") as file:
        file.write('{"instruction": "Say nothing.", "output": ""}\n')
    write_rows(tmp_path / "valid.jsonl", corpus.valid)
    return path


def filtered(flags, folder):
    assert filter_main([*flags, "--run-dir", str(folder)]) == 0
    weights = read_weights(folder / "weights.parquet")
    return weights, json.loads((folder / "summary.json").read_text())


def test_the_filter_keeps_the_top_share_with_scores(network, rows, tmp_path, capsys):
    weights, summary = filtered(
        ["--weighting", str(network), "--data", str(rows), "--keep", "0.25"], tmp_path / "top"
    )
    said = capsys.readouterr()
    assert "1 of 41 rows rejected" in said.err
    assert "kept 10 of 40 rows by the network of stage 2 of 2" in said.out
    assert (summary["rows"], summary["kept"], summary["rejected"]) == (40, 10, 1)
    assert weights["kept"].sum() == 10
    assert weights["score"][weights["kept"]].min() >= weights["score"][~weights["kept"]].max()
    lines = [json.loads(line) for line in (tmp_path / "top/kept.jsonl").read_text().splitlines()]
    originals = [json.loads(line) for line in rows.read_text().splitlines()[:40]]
    assert [line for line in originals if line["id"] in {kept["id"] for kept in lines}] == [
        {name: value for name, value in line.items() if name != "score"} for line in lines
    ]
    assert len(read_rows(tmp_path / "top/kept.jsonl").rows) == 10
    assert json.loads((tmp_path / "top/rejected.jsonl").read_text())["reason"] == "empty response"


@pytest.mark.parametrize("by", ["cdf", "softmax"])
def test_the_filter_samples_by_score(by, network, rows, tmp_path):
    flags = ["--weighting", str(network), "--data", str(rows), "--by", by]
    first, summary = filtered([*flags, "--seed", "1"], tmp_path / "a")
    again, _ = filtered([*flags, "--seed", "1"], tmp_path / "b")
    other, _ = filtered([*flags, "--seed", "2"], tmp_path / "c")
    np.testing.assert_array_equal(first["kept"], again["kept"])
    assert not np.array_equal(first["kept"], other["kept"])
    np.testing.assert_array_equal(first["score"], other["score"])
    assert 0 < summary["kept"] < 40


def test_scores_of_rows_read_alone_do_not_know_their_company(network, rows, tmp_path):
    together, _ = filtered(["--weighting", str(network), "--data", str(rows)], tmp_path / "all")
    part = tmp_path / "part.jsonl"
    part.write_text("".join(rows.read_text().splitlines(keepends=True)[5:9]))
    alone, _ = filtered(["--weighting", str(network), "--data", str(part)], tmp_path / "few")
    np.testing.assert_allclose(alone["score"], together["score"][5:9], rtol=1e-4, atol=1e-6)


def made(source, folder, **network):
    """A snapshot of another network for the same tokenizer, its parameters drawn."""
    snapshot = read_snapshots(source)[-1]
    info = replace(snapshot.info, network=replace(snapshot.info.network, **network))
    begun = info.network.scorer(info.vocab_size).init(jax.random.key(0))
    drawn = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), begun)
    write_snapshot(folder, info, drawn, snapshot.tokenizer())
    return ["--weighting", str(folder)]


def test_a_network_across_rows_says_so(source, rows, tmp_path, capsys):
    sizes = read_snapshots(source)[-1].info.network.encoder
    joint = made(source, tmp_path / "joint", reads="tokens", encoder=replace(sizes, across_rows=1))
    first, _ = filtered([*joint, "--data", str(rows)], tmp_path / "a")
    assert "rows were scored in random batches of 16" in capsys.readouterr().err
    again, _ = filtered([*joint, "--data", str(rows)], tmp_path / "b")
    other, _ = filtered([*joint, "--data", str(rows), "--seed", "1"], tmp_path / "c")
    np.testing.assert_array_equal(first["score"], again["score"])
    assert not np.allclose(first["score"], other["score"])


def test_a_network_of_losses_needs_a_model(source, rows, tmp_path, capsys):
    flags = [*made(source, tmp_path / "losses", reads="tokens_and_loss"), "--data", str(rows)]
    refused(filter_main, flags, "name one with --model", capsys)
    weights, _ = filtered([*flags, "--model", str(source / "model")], tmp_path / "a")
    tokens, _ = filtered(
        [*made(source, tmp_path / "tokens", reads="tokens"), "--data", str(rows)], tmp_path / "b"
    )
    assert not np.allclose(weights["score"], tokens["score"])


def test_a_network_of_relative_losses_compares_the_rows_of_a_file(source, rows, tmp_path):
    flags = [*made(source, tmp_path / "losses", reads="relative_loss"), "--model", str(source / "model")]
    together, _ = filtered([*flags, "--data", str(rows)], tmp_path / "together")
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(rows.read_text().splitlines()[5:9]) + "\n")
    alone, _ = filtered([*flags, "--data", str(few)], tmp_path / "alone")
    assert np.ptp(together["score"]) > 0
    assert not np.allclose(alone["score"], together["score"][5:9], rtol=1e-2)


def refused(main, flags, said, capsys):
    capsys.readouterr()
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


FILTER_ERRORS = {
    "nothing": ([], "add --weighting RUN"),
    "no data": (["--weighting", "RUN"], "add --data FILE"),
    "no run": (["--weighting", "nowhere", "--data", "rows.jsonl"], "nowhere: no such folder"),
    "no snapshot": (["--weighting", ".", "--data", "rows.jsonl"], "no snapshot here"),
    "no file": (["--weighting", "RUN", "--data", "gone.jsonl"], "gone.jsonl: no such file"),
    "keep": (["--weighting", "RUN", "--data", "rows.jsonl", "--keep", "0"], "keep must be in (0, 1]"),
    "temperature": (
        ["--weighting", "RUN", "--data", "rows.jsonl", "--temperature", "0"],
        "temperature must be",
    ),
    "other columns": (["--weighting", "RUN", "--data", "text.jsonl"], "no known columns"),
    "short": (["--weighting", "RUN", "--data", "rows.jsonl", "--max-length", "2"], "maximum length 2"),
}


@pytest.mark.parametrize("kind", FILTER_ERRORS)
def test_a_filter_that_cannot_be(kind, network, rows, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text('{"text": "Once upon a time."}\n')
    flags, said = FILTER_ERRORS[kind]
    refused(filter_main, [str(network) if flag == "RUN" else flag for flag in flags], said, capsys)
    assert not (tmp_path / "runs").exists()


def test_a_weighting_that_cannot_be(source, tmp_path, capsys):
    base = [*TRAINING, *MODEL, *CORPUS, "--width", "16"]
    refused(transfer_main, base, "add --weighting RUN", capsys)
    base.append("--weighting")
    refused(transfer_main, [*base, "nowhere"], "nowhere: no such folder", capsys)
    few = [*base, str(source), "--steps", "1"]
    refused(transfer_main, few, "cannot be shared out among 2 snapshots", capsys)
    train_tokenizer(["another one"], 300).save_pretrained(tmp_path / "tokenizer")
    other = ["--tokenizer", str(tmp_path / "tokenizer")]
    refused(transfer_main, [*base, str(source), *other], "another tokenizer than this run's", capsys)
    for flags in (["--separator", "blank"], ["--corpus.text-shares.scan", "0.2"]):
        refused(
            transfer_main,
            [*base, str(source), *flags],
            f"{flags[0].removesuffix('.scan')} is for plain text",
            capsys,
        )
    copy = tmp_path / "copy"
    shutil.copytree(source / "snapshots/stage-2", copy)
    raw = json.loads((copy / "snapshot.json").read_text())
    (copy / "snapshot.json").write_text(json.dumps(raw | {"template": ""}))
    rows = ["--template", "alpaca"]
    refused(transfer_main, [*base, str(copy), *rows], "--template is for instruction rows", capsys)
    assert not (tmp_path / "runs").exists()


def test_the_preset_is_that_of_what_the_network_reads(source, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(source / "snapshots/stage-2", copy)
    raw = json.loads((copy / "snapshot.json").read_text())
    (copy / "snapshot.json").write_text(json.dumps(raw | {"template": ""}))
    assert next(iter(presets_for(["--weighting", str(source)]))) == "tiny"
    assert next(iter(presets_for([f"--weighting={copy}"]))) == "tiny_text"
    assert next(iter(presets_for(["--weighting", "nowhere"]))) == "tiny"
