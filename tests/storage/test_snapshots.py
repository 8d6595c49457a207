"""Snapshots as folders: what is written comes back, and what does not fit is refused in a line."""

from __future__ import annotations

import json
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bilevel.data import train_tokenizer
from bilevel.errors import InputError
from bilevel.storage.snapshots import (
    SnapshotInfo,
    check_tokenizer,
    read_snapshots,
    tokenizer_fingerprint,
    write_snapshot,
)
from bilevel.weighting import EncoderSettings
from bilevel.weighting.network_description import NetworkDescription

NETWORK = NetworkDescription(encoder=EncoderSettings(8, 1, 2, 8), temperature=0.5, floor=0.1)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three"], 270)


@pytest.fixture(scope="module")
def parameters(tokenizer):
    return [NETWORK.scorer(len(tokenizer.get_vocab())).init(jax.random.key(seed)) for seed in range(3)]


@pytest.fixture
def run(tmp_path, tokenizer, parameters):
    """A run of three stages."""
    info = SnapshotInfo(
        NETWORK, len(tokenizer.get_vocab()), tokenizer_fingerprint(tokenizer), "plain", stages=3
    )
    for stage in (3, 1, 2):
        here = replace(info, stage=stage, step=10 * stage, trained_on={"rows": 40, "files": ["a", None]})
        write_snapshot(tmp_path / f"run/snapshots/stage-{stage}", here, parameters[stage - 1], tokenizer)
    return tmp_path / "run"


def test_a_run_stands_for_its_stages_and_a_folder_for_itself(run, parameters, tokenizer):
    stages = read_snapshots(run)
    assert [s.info.stage for s in stages] == [1, 2, 3]
    assert [s.info.stage for s in read_snapshots(run / "snapshots")] == [1, 2, 3]
    for found, expected in zip(stages, parameters, strict=True):
        chex.assert_trees_all_equal(found.parameters, jax.device_get(expected))
    assert stages[1].info.network == NETWORK
    assert stages[1].info.trained_on == {"rows": 40, "files": ["a", None]}
    assert [s.info.step for s in read_snapshots(run / "snapshots/stage-2")] == [20]
    for last in (run / "last", run / "snapshots/last"):
        assert [s.info.stage for s in read_snapshots(last)] == [3]
    assert tokenizer_fingerprint(stages[0].tokenizer()) == tokenizer_fingerprint(tokenizer)


def test_writing_again_replaces(run, parameters, tokenizer):
    folder = run / "snapshots/stage-1"
    (folder / "stray").write_text("x")
    write_snapshot(folder, read_snapshots(folder)[0].info, parameters[2], tokenizer)
    assert not (folder / "stray").exists()
    chex.assert_trees_all_equal(read_snapshots(folder)[0].parameters, jax.device_get(parameters[2]))


def described(folder, **changes):
    path = folder / "snapshot.json"
    raw = json.loads(path.read_text())
    raw["network"] |= changes.pop("network", {})
    path.write_text(json.dumps(raw | changes))


def tensors(folder, change):
    file = folder / "network.safetensors"
    found = {name: np.array(value) for name, value in load_file(file).items()}
    change(found)
    save_file(found, file)


BREAKS = {
    "no folder": (lambda f: f.rename(f.parent / "gone"), "no such folder"),
    "empty": (lambda f: [x.unlink() for x in f.glob("*.*")], "no snapshot here"),
    "no description": (lambda f: (f / "snapshot.json").unlink(), "no snapshot.json here"),
    "no parameters": (lambda f: (f / "network.safetensors").unlink(), "network.safetensors: no such file"),
    "half": (lambda f: (f / "network.safetensors").write_bytes(b"1234567890"), "truncated"),
    "broken JSON": (lambda f: (f / "snapshot.json").write_text("{"), "snapshot.json: no description"),
    "no object": (lambda f: (f / "snapshot.json").write_text("3"), "no description of a snapshot"),
    "unknown key": (lambda f: described(f, colour="red"), "colour is no option"),
    "floor": (lambda f: described(f, network={"floor": 1.5}), "floor must be in [0, 1), not 1.5"),
    "other shape": (lambda f: described(f, vocab_size=99), "8), the network's is (99, 8)"),
    "missing": (lambda f: tensors(f, lambda t: t.pop("mark")), "tensor mark is missing"),
    "surplus": (
        lambda f: tensors(f, lambda t: t.update(extra=np.ones(2))),
        "tensor extra belongs to no network",
    ),
    "nan": (
        lambda f: tensors(f, lambda t: t["mark"].fill(np.nan)),
        "tensor mark holds numbers that are not finite",
    ),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_what_is_broken_is_named_with_its_folder(kind, run):
    folder = run / "snapshots/stage-2"
    damage, said = BREAKS[kind]
    damage(folder)
    with pytest.raises(InputError) as error:
        read_snapshots(folder)
    message = str(error.value)
    assert said in message
    assert "stage-2" in message
    assert "\n" not in message
    assert ";" in message  # and then the remedy


def test_stages_of_different_runs_do_not_mix(run):
    described(run / "snapshots/stage-2", tokenizer="another")
    with pytest.raises(InputError, match="stage-2: has another tokenizer than"):
        read_snapshots(run)


def test_another_tokenizer_is_refused(run):
    snapshot = read_snapshots(run)[0]
    other = train_tokenizer(["one two three four five"], 270)
    with pytest.raises(InputError, match="another tokenizer than this run's; give the run that one"):
        check_tokenizer(snapshot, other)
    other.save_pretrained(snapshot.folder / "tokenizer")
    with pytest.raises(InputError, match="another tokenizer"):
        snapshot.tokenizer()
