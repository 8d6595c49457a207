from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bilevel.errors import InputError
from bilevel.layout import data_layout
from bilevel.storage.checkpoints import CheckpointOptions, Checkpoints
from bilevel.storage.seal import check_sealed, seal

LAYOUT = data_layout()
MESH, STORED = LAYOUT.mesh, LAYOUT.stored
ARRAYS = {
    "solver/key": jax.random.key(3),
    "solver/keys": LAYOUT.replicate(jax.random.split(jax.random.key(3, impl="rbg"), 4)),
    "solver/inner/weight": LAYOUT.replicate(jax.random.normal(jax.random.key(0), (40, 30))),
    "solver/inner/split": jax.device_put(jnp.arange(16.0), NamedSharding(MESH, PartitionSpec("data"))),
    "models/narrow": jnp.full((3, 5), jnp.nan, jnp.bfloat16),
    "models/step": jnp.zeros((), jnp.int32),
    "sets/chosen": np.arange(10),
    "sets/none": np.zeros(0, np.int64),
    "signals/loss": np.random.default_rng(0).normal(size=7),
    "signals/flag": np.array([True, False]),
    "signals/narrow": np.arange(3).astype(ml_dtypes.bfloat16),
}
NOTES = {"step": 3, "loss": 0.1, "nested": {"names": ["a", None]}}


def save_all(checkpoints: Checkpoints, losses: list[float | None]) -> None:
    for number, loss in enumerate(losses, start=1):
        checkpoints.save(ARRAYS | {"sets/number": np.array([number])}, NOTES, loss)
    checkpoints.close()


def numbers(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def bits(array) -> bytes:
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array).tobytes()


def test_arrays_and_notes_come_back_as_they_were(tmp_path: Path) -> None:
    save_all(Checkpoints(tmp_path), [1.0])
    found = Checkpoints(tmp_path).read_newest(STORED)
    assert found is not None
    assert found.notes == NOTES
    assert list(found.arrays) == [*ARRAYS, "sets/number"]
    for name, array in ARRAYS.items():
        other = found.arrays[name]
        assert (type(other), other.dtype, other.shape) == (type(array), array.dtype, array.shape), name
        assert bits(other) == bits(array), name
        if isinstance(array, jax.Array):
            assert other.sharding.is_equivalent_to(array.sharding, array.ndim), name
            assert other.committed == array.committed, name


def test_arrays_of_many_devices_fit_on_fewer(tmp_path: Path) -> None:
    save_all(Checkpoints(tmp_path), [1.0])
    found = Checkpoints(tmp_path).read_newest(data_layout(jax.devices()[:2]).stored)
    assert found is not None
    assert len(found.arrays["solver/inner/split"].sharding.device_set) == 2
    np.testing.assert_array_equal(found.arrays["solver/inner/split"], np.arange(16.0))


@pytest.mark.parametrize(
    ("options", "losses", "kept"),
    [
        (CheckpointOptions(), [3.0, 1.0, 2.0, 4.0, None], [2, 4, 5]),
        (CheckpointOptions(keep_last=1, keep_best=2), [3.0, 1.0, 2.0, 4.0, 5.0], [2, 3, 5]),
        (CheckpointOptions(keep_last=3, keep_best=0), [1.0, 2.0, 3.0, 4.0], [2, 3, 4]),
        (CheckpointOptions(keep_last=1), [None, None], [2]),
    ],
    ids=str,
)
def test_the_last_and_the_best_are_kept(
    tmp_path: Path, options: CheckpointOptions, losses: list[float | None], kept: list[int]
) -> None:
    save_all(Checkpoints(tmp_path, options), losses)
    assert numbers(tmp_path) == kept


def test_what_was_saved_before_counts_in_the_next_attempt(tmp_path: Path) -> None:
    save_all(Checkpoints(tmp_path), [1.0, 2.0])
    save_all(Checkpoints(tmp_path), [3.0, 4.0])
    assert numbers(tmp_path) == [1, 3, 4]


def damage(folder: Path, how: str) -> None:
    files = sorted((p for p in (folder / "arrays").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest = files[-1]
    content = largest.read_bytes()
    if how == "truncated":
        largest.write_bytes(content[: len(content) // 2])
    elif how == "one bit":
        middle = len(content) // 2
        largest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "zeros":
        largest.write_bytes(bytes(len(content)))
    elif how == "missing":
        largest.unlink()
    elif how == "no notes":
        (folder / "notes" / "metadata").unlink()
    else:
        (folder / "seal.json").write_text("{")


@pytest.mark.parametrize("how", ["truncated", "one bit", "zeros", "missing", "no notes", "broken seal"])
def test_a_broken_checkpoint_is_passed_over_with_a_word(tmp_path: Path, how: str, capfd) -> None:
    save_all(Checkpoints(tmp_path), [1.0, 2.0])
    damage(tmp_path / "2", how)
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.read_newest(STORED, said.append)
    assert found is not None
    assert found.number == 1
    assert found.arrays["sets/number"] == 1
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / '2'}: this checkpoint cannot be read (")
    checkpoints.save(ARRAYS, NOTES, 3.0)
    checkpoints.close()
    assert numbers(tmp_path)[-1] == 3
    assert capfd.readouterr().err == ""


def test_a_whole_checkpoint_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch) -> None:
    save_all(Checkpoints(tmp_path), [1.0, 2.0])

    def no_memory(*arguments: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(Checkpoints, "_read", no_memory)
    with pytest.raises(
        InputError, match=r"2: this checkpoint cannot be read \(out of memory\), though it is whole"
    ):
        Checkpoints(tmp_path).read_newest(STORED)


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nothing").read_newest(STORED) is None
    assert not (tmp_path / "nothing").exists()
    save_all(Checkpoints(tmp_path), [1.0])
    (tmp_path / "1" / "commit_success.txt").unlink(missing_ok=True)
    (tmp_path / "1").rename(tmp_path / "2.orbax-checkpoint-tmp")
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.read_newest(STORED) is None
    reader.close()
    # Another process may be writing it.
    assert (tmp_path / "2.orbax-checkpoint-tmp").exists()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.read_newest(STORED) is None
    checkpoints.save(ARRAYS, NOTES)
    checkpoints.close()
    assert numbers(tmp_path) == [1]
    assert not (tmp_path / "2.orbax-checkpoint-tmp").exists()


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from bilevel.errors import InputError
from bilevel.storage.checkpoints import Checkpoints
from bilevel.storage.disk import DiskFullError

checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save({"a": np.arange(10.0)}, {"good": True})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save({"a": np.random.default_rng(0).normal(size=10**6)}, {"good": False})
    checkpoints.close()
except DiskFullError as error:
    print(error)
"""


def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith(f"{tmp_path}: no space left (")
    assert done.stdout.count("\n") == 1
    assert done.returncode == 0, done.stderr
    found = Checkpoints(tmp_path).read_newest(STORED)
    assert found is not None
    assert found.notes == {"good": True}
    assert numbers(tmp_path) == [1]
    assert not list(tmp_path.glob("*tmp*"))


def test_a_seal_knows_every_file(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"abc")
    assert not check_sealed(tmp_path)
    seal(tmp_path)
    assert check_sealed(tmp_path)
    assert json.loads((tmp_path / "seal.json").read_text()) == {"inner/a": [3, 891568578]}
    (tmp_path / "inner" / "a").write_bytes(b"abd")
    with pytest.raises(ValueError, match="inner/a is damaged"):
        check_sealed(tmp_path)


@pytest.mark.parametrize(
    "bad", [{"every_seconds": 0.0}, {"every_steps": 0}, {"keep_last": 0}, {"keep_best": -1}], ids=str
)
def test_options_outside_their_range_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CheckpointOptions(**bad)
