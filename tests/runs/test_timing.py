from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bilevel.errors import InputError
from bilevel.runs.timing import Part, Timings, part, read_timings, write_timings


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_add_up_to_all_the_time_and_count_inner_ones_once() -> None:
    clock = Clock()
    with Timings(clock) as timings:
        clock.now += 1
        with part("training"):
            clock.now += 2
            with part("writing"):
                clock.now += 4
            clock.now += 8
        with part("training"):
            clock.now += 16
        clock.now += 32
    assert {p.name: p.seconds for p in timings.parts} == {"other": 33, "training": 26, "writing": 4}


def test_a_part_that_fails_is_counted() -> None:
    clock = Clock()

    def fail() -> None:
        clock.now += 2
        raise RuntimeError

    with Timings(clock) as timings:
        with pytest.raises(RuntimeError), part("training"):
            fail()
        clock.now += 1
    assert {p.name: p.seconds for p in timings.parts} == {"other": 1, "training": 2}


def test_compile_time_belongs_to_the_part_that_waits_for_it() -> None:
    def compiled(x: jax.Array) -> jax.Array:
        return jnp.sin(x) * 3.25

    with Timings() as timings:
        with part("first"):
            jax.jit(compiled)(jnp.ones(3)).block_until_ready()
        with part("none"):
            pass
    jax.jit(lambda x: x + 17.5)(jnp.ones(5))
    compiling = {p.name: p.compiling for p in timings.parts}
    seconds = {p.name: p.seconds for p in timings.parts}
    assert 0 < compiling["first"] <= seconds["first"]
    assert compiling["none"] == compiling["other"] == 0


def test_where_nothing_measures_a_part_does_nothing(tmp_path: Path) -> None:
    with part("training"):
        pass
    write_timings(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert read_timings(tmp_path) == []


def test_each_attempt_at_a_run_keeps_its_timings(tmp_path: Path) -> None:
    for seconds in (2, 3):
        clock = Clock()
        with Timings(clock):
            with part("training"):
                clock.now += seconds
                write_timings(tmp_path)
            clock.now += 1
            write_timings(tmp_path)
    assert read_timings(tmp_path) == [
        [Part("other", 1), Part("training", 2)],
        [Part("other", 1), Part("training", 3)],
    ]


@pytest.mark.parametrize("content", ["{", '[[{"part": 1}]]', "[1]"])
def test_broken_timings_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "timings.json").write_text(content)
    with pytest.raises(InputError, match=r"timings.json: no timings"):
        read_timings(tmp_path)
