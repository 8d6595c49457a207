"""What differentiating a whole run takes, said before it starts: bytes in each place, training runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from bilevel.core.ranges import check_ranges
from bilevel.core.unroll.replay import runs_to_starts

Keeps = Literal["records", "starts"]
Place = Literal["device", "host", "disk"]
PLACES: tuple[Place, ...] = ("device", "host", "disk")

PULL_BACK_RUNS = 2.8
"""What pulling back costs beside the records it reads, in runs of the same steps: measured 2.6 to 3.0."""

_MOST_LENGTHS = 512


class Footprint(NamedTuple):
    """Bytes of what a plan moves around, on all devices together.

    Attributes:
        state: an iterate with its optimizer's state, and the weighting's memory.
        record: a step's record: a state, the gradient, weights and losses.
        batch: a step's batch.
        cotangent: the outer gradient and the cotangent of an iterate, of all queries.
        outer: the outer variables.
        recording: temporaries of the program that records a segment, whatever its length.
        pulling: the same of the program that pulls one back.
    """

    state: int
    record: int
    batch: int = 0
    cotangent: int = 0
    outer: int = 0
    recording: int = 0
    pulling: int = 0

    @property
    def a_step(self) -> int:
        """Bytes that a segment takes for each of its steps."""
        return self.record + self.batch

    def of_segment(self, steps: int) -> int:
        """Bytes in device memory while a segment of so many steps is recorded and then pulled back."""
        both = max(2 * self.state + self.recording, 2 * self.cotangent + self.pulling)
        return self.outer + steps * self.a_step + both


class Budget(NamedTuple):
    """Bytes that may be taken in each place; 0 for none."""

    device: int
    host: int = 0
    disk: int = 0

    def of(self, place: Place) -> int:
        """Bytes in one place."""
        return int(getattr(self, place))


@dataclass(frozen=True)
class Plan:
    """How a run is differentiated.

    Attributes:
        steps: lower steps of the run.
        segment: steps of a segment.
        keeps: `starts` of segments, from which they are run again, or the `records` of all of them.
        starts: how many starts are kept at once, the first included; without meaning for records.
        place: where they are kept.
        last: how many steps are differentiated, counted from the last; None for all.

    Raises:
        ValueError: a number is out of range.
    """

    steps: int
    segment: int
    keeps: Keeps = "starts"
    starts: int = 1
    place: Place = "device"
    last: int | None = None

    def __post_init__(self) -> None:
        check_ranges(
            self,
            ("steps", self.steps >= 1, "at least 1"),
            ("segment", self.segment >= 1, "at least 1"),
            ("starts", self.starts >= 1, "at least 1"),
            (
                "last",
                self.last is None or 1 <= self.last <= self.steps,
                f"at least 1 and at most {self.steps}",
            ),
        )

    @property
    def first(self) -> int:
        """The first step that is differentiated; those before it are taken once."""
        return 0 if self.last is None else self.steps - self.last

    @property
    def segments(self) -> int:
        """How many segments are pulled back."""
        return -(-(self.steps - self.first) // self.segment)

    def span(self, number: int) -> tuple[int, int]:
        """First step of a segment, and the step after its last; the last segment may be shorter."""
        begin = self.first + number * self.segment
        return begin, min(begin + self.segment, self.steps)

    @property
    def spans_before(self) -> tuple[tuple[int, int], ...]:
        """The same of the steps before the first that is differentiated, in pieces of at most a segment's length."""
        return tuple(
            (begin, min(begin + self.segment, self.first)) for begin in range(0, self.first, self.segment)
        )

    @property
    def segment_runs(self) -> int:
        """Segments that are run, all in all: to reach starts, and once each to be recorded."""
        if self.keeps == "records":
            return self.segments
        return self.segments + runs_to_starts(self.segments, self.starts)

    @property
    def training_runs(self) -> float:
        """The price for one query, in runs of the whole training: 1 is what training itself costs."""
        share = (self.steps - self.first) / self.steps
        return self.first / self.steps + share * (self.segment_runs / self.segments + PULL_BACK_RUNS)

    def kept_bytes(self, footprint: Footprint) -> int:
        """Bytes that are kept in `place` beside the segment that is pulled back."""
        if self.keeps == "records":
            # One segment alone is never put away.
            return 0 if self.segments == 1 else (self.steps - self.first) * footprint.record
        return min(self.starts, self.segments) * footprint.state

    def bytes_in(self, place: Place, footprint: Footprint) -> int:
        """The most bytes that this plan takes in one place."""
        kept = self.kept_bytes(footprint) if place == self.place else 0
        length = min(self.segment, self.steps - self.first)
        return kept + (footprint.of_segment(length) if place == "device" else 0)

    def fits(self, footprint: Footprint, budget: Budget) -> bool:
        """Whether it stays within a budget everywhere."""
        return all(self.bytes_in(place, footprint) <= budget.of(place) for place in PLACES)


def best_plan(steps: int, footprint: Footprint, budget: Budget, last: int | None = None) -> Plan:
    """The plan with the fewest training runs within a budget; among equals the one that keeps least, nearest by.

    Args:
        steps: lower steps of the run.
        footprint: what things weigh.
        budget: what there is.
        last: how many steps are differentiated, counted from the last; None for all.

    Raises:
        ValueError: the budget is too small for any plan.
    """
    fitting = [plan for plan in _plans(steps, footprint, budget, last) if plan.fits(footprint, budget)]
    if not fitting:
        raise ValueError(
            f"a budget of {budget.device:,} bytes of device memory is too small for any plan: a segment of one step "
            f"takes {footprint.of_segment(1):,} there, and its start {footprint.state:,} there or elsewhere"
        )
    return min(
        fitting,
        key=lambda plan: (
            plan.segment_runs / plan.segments,
            PLACES.index(plan.place),
            plan.kept_bytes(footprint),
        ),
    )


def _plans(steps: int, footprint: Footprint, budget: Budget, last: int | None) -> Iterator[Plan]:
    differentiated = steps if last is None else last
    yield Plan(steps, differentiated, "records", last=last)
    room = budget.device - footprint.of_segment(0)
    longest = min(differentiated, room // max(1, footprint.a_step))
    for length in _lengths(longest):
        for place in PLACES:
            yield Plan(steps, length, "records", place=place, last=last)
            free = budget.of(place) - (footprint.of_segment(length) if place == "device" else 0)
            segments = -(-differentiated // length)
            starts = min(free // max(1, footprint.state), max(1, segments - 1))
            if starts >= 1:
                yield Plan(steps, length, "starts", starts, place, last)


def _lengths(longest: int) -> list[int]:
    """Segment lengths worth a look: all of few, and about evenly many of each size of many."""
    if longest <= _MOST_LENGTHS:
        return list(range(1, longest + 1))
    return sorted({round(longest ** (k / (_MOST_LENGTHS - 1))) for k in range(_MOST_LENGTHS)})
