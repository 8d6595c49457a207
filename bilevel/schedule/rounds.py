"""Rounds of moves, repeated, and skipped once enough is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bilevel.schedule.moves import Move
from bilevel.schedule.state import RunState


class Round(NamedTuple):
    """Moves that belong together.

    Attributes:
        moves: one after the other.
        skip_when: asked of the state at the round's beginning: whether to pass it over.
    """

    moves: tuple[Move, ...]
    skip_when: Callable[[RunState], bool] | None = None


Schedule = tuple[Round, ...]


def repeat(
    n: int,
    moves: Sequence[Move] | Callable[[int], Sequence[Move]],
    until: Callable[[RunState], bool] | None = None,
) -> Schedule:
    """A schedule of equal rounds.

    Args:
        n: how many.
        moves: of a round, or from its number (0 for the first) to them.
        until: asked of the state before each round but the first; once it holds, the rounds that are left are passed
            over.
    """

    def of(number: int) -> tuple[Move, ...]:
        return tuple(moves(number) if callable(moves) else moves)

    return tuple(Round(of(number), until if number else None) for number in range(n))


def moves_of(schedule: Schedule) -> Iterator[Move]:
    """All moves of a schedule, in their order."""
    return (move for each in schedule for move in each.moves)
