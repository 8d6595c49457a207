"""The table of estimators: names, what it says, what it refuses."""

from __future__ import annotations

import dataclasses
from typing import get_args

import optax
import pytest
from jaxtyping import TypeCheckError

from bilevel.core.estimators import (
    ESTIMATORS,
    EstimatorName,
    EstimatorSettings,
    Situation,
    make_solver,
    unsound,
)
from tests.zoo import row_problem


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


OTHER = {
    "iterations": 3,
    "tolerance": 0.1,
    "curvature": "gauss_newton",
    "damping": 0.1,
    "relative_damping": 0.1,
    "rank": 3,
    "warm_start": True,
    "reuse": True,
    "step_size": 0.1,
    "mode": "reverse",
    "last_steps": 2,
    "segment": 2,
    "gamma": 3.0,
    "eta": 0.1,
    "samples": 3,
    "radius": 0.1,
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_settings_that_an_estimator_does_not_read_are_refused_and_the_others_are_not(name):
    fields = {field.name for field in dataclasses.fields(EstimatorSettings)} - {"name"}
    assert set(OTHER) == fields
    row = ESTIMATORS[name]
    assert set(row.reads) <= fields
    row.check(EstimatorSettings(name, **{field: OTHER[field] for field in row.reads}))
    for field in fields - set(row.reads):
        with pytest.raises(ValueError, match=f"{name} takes no {field}"):
            make_solver(
                EstimatorSettings(name, **{field: OTHER[field]}),
                row_problem(4),
                optax.sgd(1.0),
                optax.sgd(1.0),
            )


def test_names_that_are_not_in_the_table_are_refused():
    with pytest.raises((ValueError, TypeCheckError), match="magic"):
        EstimatorSettings("magic")


def test_rules_that_invert_warn_of_a_network_without_damping():
    for name, row in ESTIMATORS.items():
        lines = unsound(EstimatorSettings(name), Situation(network=True))
        assert any("add damping" in line for line in lines) == (row.inverts and name != "nystrom")
