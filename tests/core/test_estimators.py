"""The table of estimators: names, what it says, what it refuses."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from bilevel.core.estimators import ESTIMATORS, EstimatorName, EstimatorSettings


def test_every_name_of_the_command_line_is_a_row_and_the_other_way_round():
    assert set(get_args(EstimatorName)) == set(ESTIMATORS)
    assert all(name == row.name for name, row in ESTIMATORS.items())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_row_says_when_to_take_it_and_what_it_costs(name):
    row = ESTIMATORS[name]
    texts = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.type == "str"}
    assert len(texts) >= 7
    assert all(text for field, text in texts.items() if field != "descends")
    assert not any("|" in text or "\n" in text for text in texts.values())  # they stand in a table


@pytest.mark.parametrize("bad", [{"step_size": 0.0}, {"gamma": -1.0}], ids=str)
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        EstimatorSettings(**bad)
