"""When to run which segment again: against dynamic programming, and what a budget makes of it."""

from __future__ import annotations

from functools import cache

import pytest

from bilevel.core.unroll import Budget, Footprint, Plan, best_plan
from bilevel.core.unroll.replay import next_start, runs_to_starts

MANY = 40


@cache
def fewest(segments: int, starts: int) -> int:
    """Segments run to reach starts, by dynamic programming over where the next start is kept."""
    if segments == 1:
        return 0
    if starts == 1:
        return segments * (segments - 1) // 2
    return min(
        here + fewest(segments - here, starts - 1) + fewest(here, starts) for here in range(1, segments)
    )


@cache
def taken(segments: int, starts: int) -> int:
    """The same as `next_start` has it."""
    if segments == 1:
        return 0
    here = next_start(segments, starts - 1)
    assert 1 <= here < segments
    beyond = 0 if starts == 1 else taken(segments - here, starts - 1)
    return here + beyond + taken(here if starts > 1 else segments - 1, starts)


@pytest.mark.parametrize("starts", range(1, 8))
def test_no_schedule_takes_fewer_runs(starts):
    for segments in range(1, MANY):
        assert runs_to_starts(segments, starts) == fewest(segments, starts) == taken(segments, starts)


def test_a_long_run_with_few_starts_takes_a_few_runs():
    assert runs_to_starts(4096, 12) / 4096 == pytest.approx(4.42, abs=0.005)


SMALL = Footprint(state=12, record=16, batch=1, cotangent=2, outer=1, recording=10, pulling=20)


def test_with_room_for_all_records_nothing_is_run_twice():
    plan = best_plan(72, SMALL, Budget(device=10_000))
    assert (plan.segments, plan.segment_runs) == (1, 1)
    assert plan.bytes_in("device", SMALL) == 1 + 72 * 17 + 2 * 12 + 10


def test_less_room_means_starts_and_still_less_several_repetitions():
    root = best_plan(72, SMALL, Budget(device=400))
    assert root.keeps == "starts"
    assert root.segment_runs == 2 * root.segments - 1
    tight = best_plan(72, SMALL, Budget(device=110))
    assert tight.segment_runs > 2 * tight.segments
    for plan, room in ((root, 400), (tight, 110)):
        assert plan.bytes_in("device", SMALL) <= room
        assert plan.bytes_in("host", SMALL) == plan.bytes_in("disk", SMALL) == 0


def test_other_places_are_taken_where_the_devices_are_full_and_the_nearest_first():
    records = best_plan(72, SMALL, Budget(device=110, host=72 * 16, disk=10**6))
    assert (records.keeps, records.place) == ("records", "host")
    on_disk = best_plan(72, SMALL, Budget(device=110, host=20, disk=72 * 16))
    assert (on_disk.keeps, on_disk.place) == ("records", "disk")
    starts = best_plan(72, SMALL, Budget(device=110, host=600))
    assert (starts.keeps, starts.place) == ("starts", "host")
    assert starts.bytes_in("host", SMALL) <= 600


def test_a_budget_for_no_plan_is_refused_with_what_the_least_takes():
    least = SMALL.of_segment(1)
    assert best_plan(72, SMALL, Budget(least + SMALL.state)).segment_runs == 72 + 72 * 71 // 2
    assert best_plan(72, SMALL, Budget(least, host=SMALL.state)).place == "host"
    for budget in (Budget(least + SMALL.state - 1), Budget(least - 1, host=10**9)):
        with pytest.raises(ValueError, match=f"too small for any plan.*takes {least} "):
            best_plan(72, SMALL, budget)


def test_a_window_is_cheaper_than_the_run():
    whole, window = (best_plan(72, SMALL, Budget(400), last) for last in (None, 12))
    assert window.first == 60
    assert window.span(window.segments - 1)[1] == 72
    assert sum(end - begin for begin, end in window.spans_before) == 60
    assert window.training_runs < whole.training_runs / 2


@pytest.mark.parametrize(
    ("bad", "name"), [({"segment": 0}, "segment"), ({"starts": 0}, "starts"), ({"last": 9}, "last")]
)
def test_plans_out_of_range_are_refused(bad, name):
    with pytest.raises(ValueError, match=name):
        Plan(8, **{"segment": 2, **bad})
