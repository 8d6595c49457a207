"""Every estimator against the dense hypergradient, as the table of cases says."""

from __future__ import annotations

import re

import jax
import pytest

from bilevel.core import Problem
from bilevel.core.estimators import ESTIMATORS, EstimatorSettings
from docs.estimators_page import EXACT, PAGE, page
from tests.float64.estimator_cases import CASES, measured, outer_gradient, with_more_work
from tests.float64.problems import general, problem
from tests.zoo import relative_error

ERROR, COSINE = re.compile(r"below \S+|\d\.\de[-+]\d\d"), re.compile(r"-?\d\.\d{3}(?= \|)")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_hypergradient_is_as_near_to_the_dense_one_as_the_table_says(case):
    found = measured(case)
    if case.error is not None:
        assert found.error < case.error
    if case.cosine is not None:
        assert found.cosine > case.cosine
    assert case.error is not None or case.cosine is not None


@pytest.mark.parametrize("case", [case for case in CASES if case.more], ids=lambda case: case.name)
def test_four_times_the_work_is_never_worse(case):
    assert measured(with_more_work(case)).error <= max(measured(case).error, 1e-9)


def renested(known):
    """The same problem over inner variables in another tree."""
    structure = jax.tree.structure(known.inner)

    def flat(inner):
        return structure.unflatten([inner["last"], *inner["rest"][0]][::-1])

    def function(original):
        return lambda outer, inner, batch: original(outer, flat(inner), batch)

    leaves = jax.tree.leaves(known.inner)[::-1]
    problem = Problem(*map(function, general(known.problem)))
    return known._replace(problem=problem, inner={"last": leaves[0], "rest": (leaves[1:], ())})


# What is drawn is drawn leaf by leaf, so that another tree is another draw: a sketch, the start of a power iteration.
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"nystrom"}))
def test_how_inner_variables_are_nested_changes_nothing(name):
    known = problem("quadratic")
    steps = {"step_size": 0.05} if "step_size" in ESTIMATORS[name].reads else {}
    settings = EstimatorSettings(name, **steps)
    (found, _), (again, report) = (outer_gradient(k, settings, settle=3) for k in (known, renested(known)))
    assert report.finite
    assert relative_error(again, found) < 1e-9


# Without compilation every operation is a program of its own: one estimator of a kind at all times.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("conjugate_gradient", "penalty", "soba") else pytest.mark.slow
        )
        for name in ESTIMATORS
    ],
)
def test_compiling_changes_nothing(name):
    known, settings = problem("quadratic"), EstimatorSettings(name)
    found, _ = outer_gradient(known, settings, settle=1)
    plain, _ = outer_gradient(known, settings, settle=1, compiled=False)
    assert relative_error(plain, found) < 1e-9


def test_every_estimator_has_a_case():
    assert {case.settings.name for case in CASES} | {"penalty_single"} == set(ESTIMATORS)


def test_the_page_says_what_the_table_says_and_what_is_measured_now():
    """Words as they stand, numbers as far as machines agree: `python -m docs.estimators_page` writes it."""
    written, present = PAGE.read_text(encoding="utf-8"), page()

    def words(text):
        return COSINE.sub("#", ERROR.sub("#", text))

    def errors(text):
        return [EXACT if "below" in found else float(found) for found in ERROR.findall(text)]

    assert words(written) == words(present)
    assert [float(x) for x in COSINE.findall(written)] == pytest.approx(
        [float(x) for x in COSINE.findall(present)], abs=2e-3
    )
    assert errors(written) == pytest.approx(errors(present), rel=0.5, abs=1e-6)
