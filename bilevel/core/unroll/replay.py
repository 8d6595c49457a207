"""When to run which segment of a training run again, so that it can be walked backwards with few of its states kept.

A run of n segments is pulled back from its last one to its first. Each needs its records, which are made by running it
from its start; of starts, only so many can be kept. What is kept where is the binomial schedule: with c of them (the
run's own start is one) and r the smallest number with C(c + r, c) >= n, the segments are run

    r n - C(c + r, c + 1)

times to reach starts, and once each to be recorded. No other schedule takes fewer (Griewank and Walther 2000). With
c >= n - 1 that is once each: "all starts", or the square root when segments are as long as there are many of them.

References:
    Griewank and Walther, Algorithm 799: Revolve, ACM TOMS 2000.
"""

from __future__ import annotations

from math import comb


def repetitions(segments: int, starts: int) -> int:
    """r: how many times a segment is run at most to reach starts; 0 for one segment alone."""
    most = 0
    while comb(starts + most, starts) < segments:
        most += 1
    return most


def runs_to_starts(segments: int, starts: int) -> int:
    """Segments that are run, all in all, to reach the starts of those that are to be recorded.

    Args:
        segments: how many there are, at least 1.
        starts: how many of their starts can be kept, the first included, at least 1.

    Example:
        >>> from bilevel.core.unroll.replay import runs_to_starts
        >>> runs_to_starts(10, 9), runs_to_starts(10, 3), runs_to_starts(10, 1)
        (9, 15, 45)
    """
    most = repetitions(segments, starts)
    return most * segments - comb(starts + most, starts + 1)


def next_start(segments: int, free: int) -> int:
    """How many segments beyond a kept start the next is to be kept, when so many segments are left from there.

    Args:
        segments: that are left to pull back from the kept start on, at least 2.
        free: how many more starts can be kept.

    Returns:
        A number in 1 .. segments - 1. The last segment's start is needed at once and takes no place.
    """
    if free == 0:
        return segments - 1
    starts = free + 1
    most = repetitions(segments, starts)
    # Both parts must still manage with r repetitions, the earlier one with r - 1 of its own: any such place is best.
    most_beyond, least_before = comb(starts + most - 1, starts - 1), comb(starts + most - 2, starts)
    return min(max(1, segments - most_beyond, least_before), segments - 1)
