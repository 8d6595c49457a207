"""The one driver: checks a schedule, then runs its moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bilevel.schedule.moves import Move
from bilevel.schedule.state import Context, RunState

Schedule = Sequence[Sequence[Move]]
"""A tuple of rounds, each a tuple of moves."""


def run_schedule(schedule: Schedule, state: RunState, context: Context) -> RunState:
    """Runs a schedule's rounds in order, each move from the state that the one before it left.

    Args:
        schedule: rounds of moves.
        state: where to begin.
        context: what to run with.

    Raises:
        ValueError, InputError: before anything runs; see `check_schedule`.
    """
    check_schedule(schedule, state, context)
    for moves in schedule:
        for move in moves:
            with context.timed(type(move).__name__.lower()):
                state = move.run(state, context)
        state = replace(state, round=state.round + 1)
    return state


def check_schedule(schedule: Schedule, state: RunState, context: Context) -> None:
    """Checks a schedule before it runs.

    Raises:
        ValueError: a move reads what is neither in the state nor written by an earlier move.
        InputError: what a move itself can know: a batch larger than its data, say.
    """
    present = {f"model:{name}" for name in state.models} | {f"data:{name}" for name in context.data}
    present |= {f"signal:{name}" for name in state.signals} | {f"set:{name}" for name in state.sets}
    if state.solver is not None:
        present.add("solver")
    for number, moves in enumerate(schedule, start=state.round + 1):
        for move in moves:
            missing = [name for name in move.reads if name not in present]
            if missing:
                raise ValueError(
                    f"round {number}: {type(move).__name__} reads {', '.join(missing)}, which nothing before it "
                    f"writes; there are {', '.join(sorted(present))}"
                )
            move.check(context)
            present.update(move.writes)
