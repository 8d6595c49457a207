"""Gates that rewritten rows pass or do not, and the rows that the next round is made of."""

from __future__ import annotations

import numpy as np
import pytest

from bilevel.curate import (
    LengthBounds,
    NoNearCopy,
    Rewrite,
    first_reason,
    higher_than_before,
    lower_than_before,
    merged,
    not_empty,
)
from bilevel.data import Row
from bilevel.errors import InputError

OLD = Row("a:1", "Name the capital of France, please.", "", "The capital of France is Paris.")
ROWS = [OLD, Row("a:2", "Add the numbers.", "2 3", "5"), Row("a:3", "Add the numbers.", "4 1", "5")]


def new(instruction: str = "Which city is the capital of France?", output: str = "Paris is.") -> Row:
    return Row("a:1~1.1", instruction, "", output)


@pytest.mark.parametrize(
    ("rewrite", "gate", "reason"),
    [
        (new(), not_empty, ""),
        (new(output=" \n"), not_empty, "empty response"),
        (new(instruction=" "), not_empty, "empty prompt"),
        (new(), LengthBounds(), ""),
        (new(output="Paris"), LengthBounds(), "response too short (1 words for 7)"),
        (new(output="Paris " * 36), LengthBounds(), "response too long (36 words for 7)"),
        (new(instruction="Capital?" * 40), LengthBounds(), "prompt too long (80 words for 8)"),
        (new(), NoNearCopy(ROWS), ""),
        (new(OLD.instruction.upper(), OLD.output), NoNearCopy(ROWS), "a near copy of a:1"),
        (new("Add the numbers.\n2 3", "5"), NoNearCopy(ROWS), "a near copy of a:2"),
        (new(OLD.instruction, OLD.output + " It is large."), NoNearCopy(ROWS), ""),
        (
            new(OLD.instruction, OLD.output + " It is large."),
            NoNearCopy(ROWS, largest=0.5),
            "a near copy of a:1",
        ),
        (new("Hi.", "Hi"), NoNearCopy([Row("b:1", "hi.", "", "hi")]), "a near copy of b:1"),
    ],
)
def test_gates_say_why_a_rewrite_is_refused(rewrite, gate, reason):
    assert gate(Rewrite(OLD, rewrite)) == reason


def test_signals_must_move_the_right_way_and_be_known():
    nan = float("nan")
    for before, after, lower, higher in (
        (2.0, 1.5, True, False),
        (2.0, 2.5, False, True),
        (2.0, 2.0, False, False),
    ):
        rewrite = Rewrite(OLD, new(), before, after)
        assert (lower_than_before(rewrite) == "", higher_than_before(rewrite) == "") == (lower, higher)
    for before, after in ((nan, 1.0), (1.0, nan)):
        assert lower_than_before(Rewrite(OLD, new(), before, after)).startswith("no lower than before")
        assert higher_than_before(Rewrite(OLD, new(), before, after)).startswith("no higher than before")


def test_the_first_reason_counts():
    gates = (not_empty, LengthBounds(), lower_than_before)
    assert first_reason(Rewrite(OLD, new(output=""), 1.0, 2.0), gates) == "empty response"
    assert first_reason(Rewrite(OLD, new(), 1.0, 2.0), gates) == "no lower than before (2)"
    assert first_reason(Rewrite(OLD, new(), 2.0, 1.0), gates) == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LengthBounds(shortest=2.0), r"shortest must be in \[0, 1\], not 2.0"),
        (lambda: LengthBounds(longest=0.5), r"longest must be 1 or more, not 0.5"),
        (lambda: NoNearCopy([], largest=0.0), r"largest must be in \(0, 1\], not 0.0"),
    ],
)
def test_gates_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MANY = [Row(f"m:{n}", "Ask.", f"input {n}", "the same answer") for n in range(10)]


def made(of: Row, number: int) -> Row:
    return Row(f"{of.id}~1.{number}", "Rewritten.", of.input, of.output)


HARD = {row.id: made(row, 1) for row in MANY[:4]}
LOW = {row.id: made(row, 2) for row in MANY[2:7]}
ADDED = [Row(f"n:{n}", "New.", "", "answer") for n in range(3)]


def test_the_authors_merge_grows_by_rows_rewritten_twice_and_by_what_is_added():
    found = merged(MANY, (HARD, LOW), ADDED, form="author")
    assert len(found) == len(MANY) + len(set(HARD) & set(LOW)) + len(ADDED)
    ids = [row.id for row in found]
    assert ids[:6] == ["m:0~1.1", "m:1~1.1", "m:2~1.1", "m:2~1.2", "m:3~1.1", "m:3~1.2"]
    assert ids[-3:] == ["n:0", "n:1", "n:2"]
    # Rows that differ in their input alone, all with one answer, are all there.
    assert {"m:7", "m:8", "m:9"} <= set(ids)


def test_conserving_keeps_the_number_of_rows_exactly():
    redundancy = np.array([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, np.nan, 0.6])
    assert len(merged(MANY, (HARD, LOW))) == len(MANY)
    with_two = merged(MANY, (HARD, LOW), ADDED[:2], redundancy=redundancy)
    ids = [row.id for row in with_two]
    # Of rows that were not rewritten the most redundant go: 9 and 7; 8 was not measured and stays.
    assert ids == [
        "m:0~1.1",
        "m:1~1.1",
        "m:2~1.1",
        "m:3~1.1",
        "m:4~1.2",
        "m:5~1.2",
        "m:6~1.2",
        "m:8",
        "n:0",
        "n:1",
    ]
    for given in ({"redundancy": redundancy}, {}):
        with pytest.raises(InputError, match=r"3 rows are to be added, and \d of 10 may go for them"):
            merged(MANY, (HARD, LOW), ADDED, **given)


def test_nothing_rewritten_is_nothing_changed_and_unknown_rows_are_refused():
    for form in ("conserve", "author"):
        assert merged(MANY, ({}, {}), form=form) == tuple(MANY)
    with pytest.raises(InputError, match="x:1: a rewrite of a row that is not among the rows"):
        merged(MANY, ({"x:1": OLD},))
