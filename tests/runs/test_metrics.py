import errno
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.errors import InputError
from bilevel.runs.metrics import MetricsWriter, read_metrics
from bilevel.storage.disk import DiskFullError


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_scalars_of_every_origin_come_back_by_method(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, events=False) as metrics:
        metrics.write(
            "bds", 0, {"lower_loss": jnp.float32(1.5), "skipped_steps": np.int64(2), "note": "start"}
        )
        metrics.write("uniform", 0, {"lower_loss": np.float64(0.1), "upper_loss": None, "done": True})
        metrics.write("bds", 5, {"lower_loss": 1.25})
    assert read_metrics(tmp_path) == {
        "bds": [
            {"method": "bds", "step": 0, "lower_loss": 1.5, "skipped_steps": 2, "note": "start"},
            {"method": "bds", "step": 5, "lower_loss": 1.25},
        ],
        "uniform": [{"method": "uniform", "step": 0, "lower_loss": 0.1, "upper_loss": None, "done": True}],
    }


def test_numbers_that_are_not_finite_become_null_and_are_not_forgotten(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, events=False) as metrics:
        metrics.write("bds", 1, {"lower_loss": math.nan, "upper_loss": jnp.float32(-jnp.inf), "seconds": 1.0})
    (line,) = lines_of(tmp_path)
    assert line["lower_loss"] is None
    assert line["upper_loss"] is None
    assert line["non_finite"] == {"lower_loss": "nan", "upper_loss": "-inf"}
    assert line["seconds"] == 1.0


@pytest.mark.parametrize("value", [jnp.ones(2), np.zeros((1, 1)), [1.0], {"a": 1}])
def test_values_that_are_no_scalars_are_refused_by_name(tmp_path: Path, value: object) -> None:
    with MetricsWriter(tmp_path, events=False) as metrics, pytest.raises(TypeError, match="lower_loss"):
        metrics.write("bds", 1, {"lower_loss": value})
    assert lines_of(tmp_path) == []


def test_lines_reach_the_file_as_soon_as_the_policy_says(tmp_path: Path) -> None:
    patient = MetricsWriter(tmp_path, flush_seconds=3600, events=False)
    patient.write("bds", 1, {})
    assert lines_of(tmp_path) == []
    patient.flush()
    assert len(lines_of(tmp_path)) == 1
    patient.close()
    eager = MetricsWriter(tmp_path, flush_seconds=0, events=False)
    eager.write("bds", 2, {})
    assert len(lines_of(tmp_path)) == 2
    eager.close()
    eager.close()


def test_writer_keeps_whole_lines_of_a_killed_run_and_drops_half_a_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"method": "bds", "step": 1}\n{"method": "bds", "st')
    assert [line["step"] for line in read_metrics(tmp_path)["bds"]] == [1]
    with MetricsWriter(tmp_path, events=False) as metrics:
        metrics.write("bds", 2, {})
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]


def test_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"method": "bds"\n{"method": "bds", "step": 1}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:1: broken JSON"):
        read_metrics(tmp_path)


def test_no_file_is_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == {}


def test_events_hold_the_same_numbers_in_a_folder_a_method(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in range(3):
            metrics.write("bds", step, {"lower_loss": 2.0 / (step + 1), "note": "text"})
        metrics.write("uniform", 0, {"lower_loss": math.nan})
    events = read_events(tmp_path / "events" / "bds")
    assert events == [("lower_loss", 0, 2.0), ("lower_loss", 1, 1.0), ("lower_loss", 2, pytest.approx(2 / 3))]
    ((key, step, value),) = read_events(tmp_path / "events" / "uniform")
    assert (key, step) == ("lower_loss", 0)
    assert math.isnan(value)


def test_a_continued_run_writes_on_as_if_nothing_had_come_after_its_checkpoint(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in range(5):
            metrics.write("bds", step, {"lower_loss": float(step)})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    killed = tmp_path / "killed"
    killed.mkdir()
    with MetricsWriter(killed) as metrics:
        for step in range(3):
            metrics.write("bds", step, {"lower_loss": float(step)})
        position = metrics.position()
        metrics.write("bds", 3, {"lower_loss": 30.0})
    with MetricsWriter(killed) as metrics:
        metrics.cut(position, "bds", 2)
        assert metrics.position() == position
        for step in range(3, 5):
            metrics.write("bds", step, {"lower_loss": float(step)})
    assert (killed / "metrics.jsonl").read_bytes() == whole
    first, second = sorted((killed / "events" / "bds").iterdir(), key=lambda path: path.suffix)
    assert [value for _, _, value in read_event_file(first)] == [0.0, 1.0, 2.0, 30.0]
    assert starts_in(second) == [3]
    assert [value for _, _, value in read_event_file(second)] == [3.0, 4.0]


def test_a_cut_beyond_the_end_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, events=False) as metrics:
        metrics.write("bds", 1, {})
        position = metrics.position()
        metrics.cut(position + 100, "bds", 1)
        assert metrics.position() == position
        metrics.write("bds", 2, {})
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]


class Full:
    """A file on a full disk."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = close = lambda self: None


def test_a_full_disk_ends_measuring_with_the_file_and_the_disk(tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path, events=False)
    metrics._file = Full(metrics._file)
    with pytest.raises(DiskFullError, match=r"metrics.jsonl: no space left \(\d.* free on the disk of .*\)$"):
        metrics.write("bds", 1, {})
    metrics.close()


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    (path,) = folder.iterdir()
    return read_event_file(path)


def read_event_file(path: Path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for event in events_in(path)
        for value in event.summary.value
    ]


def starts_in(path: Path) -> list[int]:
    """From which steps on TensorBoard forgets what stood in earlier files."""
    return [event.step for event in events_in(path) if event.session_log.status == 1]


def events_in(path: Path) -> list[Any]:
    """Reads TFRecord framing (length, its checksum, record, its checksum) of an event file."""
    from tensorboardX.proto.event_pb2 import Event

    content, position, found = path.read_bytes(), 0, []
    while position < len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        found.append(Event.FromString(content[position + 12 : position + 12 + length]))
        position += 12 + length + 4
    return found
