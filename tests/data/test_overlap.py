"""Validation rows that stand in the training rows."""

from pathlib import Path

import pytest

from bilevel.data import Row, check_overlap, read_rows
from bilevel.errors import InputError


def row(identity: str, instruction: str, output: str, input: str = "") -> Row:
    return Row(identity, instruction, input, output)


def test_overlap_counts_pairs_and_prompts() -> None:
    train = [row("t:1", "Add.", "3", "1 2"), row("t:2", "Say hi.", "Hi."), row("t:3", "Say hi.", "Hello.")]
    valid = [
        row("v:1", "Add.", "3", "1 3"),
        row("v:2", "Say hi. ", "Hello.\n"),
        row("v:3", "Say hi.", "Good day."),
        row("v:4", "Say bye.", "Bye."),
    ]
    overlap = check_overlap(train, valid)
    assert overlap.pairs == (("v:2", "t:3"),)
    assert overlap.prompts == (("v:2", "t:2"), ("v:3", "t:2"))
    assert overlap.total == 4
    assert overlap.warning.startswith(
        "2 of 4 validation rows share their prompt with a training row, 1 of them the"
    )
    assert "v:2 and t:2" in overlap.warning


def test_disjoint_sets_give_no_warning() -> None:
    overlap = check_overlap([row("t:1", "a", "b")], [row("v:1", "c", "b")])
    assert (overlap.pairs, overlap.prompts, overlap.warning) == ((), (), "")


def test_validation_rows_that_all_stand_in_the_training_rows_are_an_error() -> None:
    train = [row("t:1", "a", "b"), row("t:2", "c", "d"), row("t:3", "e", "f")]
    valid = [row("v:1", "c", "d"), row("v:2", "a", "b")]
    expected = (
        r"all 2 validation rows stand in the training rows \(first: v:1 is t:2\); hold trusted rows out"
    )
    with pytest.raises(InputError, match=expected):
        check_overlap(train, valid)


def test_shared_prompts_with_other_responses_are_allowed_in_any_number() -> None:
    overlap = check_overlap([row("t:1", "a", "yes")], [row("v:1", "a", "no")])
    assert (len(overlap.prompts), len(overlap.pairs)) == (1, 0)


def test_real_validation_rows_share_prompts_with_the_real_training_rows(shared_folder: Path) -> None:
    train = read_rows(shared_folder / "data" / "alpaca_5000_NC.json").rows
    valid = read_rows(shared_folder / "data" / "val_alpaca_gpt4_1000_NC.jsonl").rows
    overlap = check_overlap(train, valid)
    prompts = {(row.instruction.strip(), row.input.strip()) for row in train}
    shared = [row.id for row in valid if (row.instruction.strip(), row.input.strip()) in prompts]
    assert [identity for identity, _ in overlap.prompts] == shared
    assert 0 < len(overlap.pairs) < len(shared)
    assert f"{len(shared)} of 1000 validation rows" in overlap.warning
