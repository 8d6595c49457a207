"""Every estimator against the dense hypergradient, as the table of cases says."""

from __future__ import annotations

import pytest

from tests.float64.estimator_cases import CASES, measured, with_more_work


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
