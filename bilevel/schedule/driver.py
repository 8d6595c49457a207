"""The one driver: checks a schedule, then runs its moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bilevel.errors import InputError
from bilevel.schedule.moves import Move
from bilevel.schedule.state import Context, Position, RunState, Stopped

Schedule = Sequence[Sequence[Move]]
"""A tuple of rounds, each a tuple of moves."""


def run_schedule(schedule: Schedule, state: RunState, context: Context) -> RunState:
    """Runs a schedule's rounds in order, each move from the state that the one before it left.

    A state that was saved while this schedule ran is continued from where it stands, to the same end, bit for bit.
    The saver hears of the state after every move, and always at the schedule's end.

    Args:
        schedule: rounds of moves.
        state: where to begin.
        context: what to run with.

    Raises:
        ValueError, InputError: before anything runs; see `check_schedule`.
        Stopped: the saver was asked to stop; the state was saved.
    """
    check_schedule(schedule, state, context)
    saver = context.saver
    try:
        while state.position.round < len(schedule):
            moves = schedule[state.position.round]
            if state.position.move < len(moves):
                move = moves[state.position.move]
                with context.timed(type(move).__name__.lower()):
                    state = move.run(state, context)
            state = _advanced(state, len(moves))
            if saver.stopping:
                raise Stopped(state)
            if state.position.round == len(schedule) or saver.due(state.step):
                saver.save(state)
    except Stopped as stopped:
        saver.save(stopped.state)
        raise
    return replace(state, position=Position())


def _advanced(state: RunState, moves: int) -> RunState:
    """The state with one more move of its round finished, and with its last the round."""
    round, move = state.position.round, state.position.move + 1
    if move < moves:
        return replace(state, position=Position(round, move))
    return replace(state, round=state.round + 1, position=Position(round + 1))


def check_schedule(schedule: Schedule, state: RunState, context: Context) -> None:
    """Checks what is left of a schedule before it runs.

    Raises:
        ValueError: a move reads what is neither in the state nor written by an earlier move.
        InputError: what a move itself can know: a batch larger than its data, an estimator that does not suit the
            problem or the optimizer.
    """
    present = {f"model:{name}" for name in state.models} | {f"data:{name}" for name in context.data}
    present |= {f"signal:{name}" for name in state.signals} | {f"set:{name}" for name in state.sets}
    if state.solver is not None:
        present.add("solver")
    solver = state.solver
    left = list(schedule[state.position.round :])
    if left:
        left[0] = left[0][state.position.move :]
    for number, moves in enumerate(left, start=state.round + 1):
        for move in moves:
            missing = [name for name in move.reads if name not in present]
            if missing:
                raise ValueError(
                    f"round {number}: {type(move).__name__} reads {', '.join(missing)}, which nothing before it "
                    f"writes; there are {', '.join(sorted(present))}"
                )
            move.check(context)
            try:
                solver = move.solver_after(solver, state.models)
            except ValueError as error:
                raise InputError(str(error)) from error
            present.update(move.writes)
