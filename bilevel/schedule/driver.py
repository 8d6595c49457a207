"""The one driver: checks a schedule, then runs its moves."""

from __future__ import annotations

from dataclasses import replace

from bilevel.schedule.context import Context, Stopped
from bilevel.schedule.rounds import Schedule
from bilevel.schedule.state import Position, RunState


def run_schedule(schedule: Schedule, state: RunState, context: Context) -> RunState:
    """Runs a schedule's rounds in order, each move from the state that the one before it left.

    A state that was saved while this schedule ran is continued from where it stands, to the same end, bit for bit.
    The saver hears of the state after every move, and always at the schedule's end.

    The arrays of a solver's state that is handed over are used up, as those that `jax.jit` is told to donate, and with
    them the model in training, which is a part of it: go on with the state that is returned. All other models stay as
    they are.

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
    # The one reference that the driver holds of a state, which a move takes: what it donates must be nobody else's.
    at = [state]
    del state
    try:
        while at[0].position.round < len(schedule):
            moves, skip_when = schedule[at[0].position.round]
            position = at[0].position
            fresh = position.move == 0 and position.steps == 0 and not at[0].pending
            if fresh and skip_when is not None and skip_when(at[0]):
                at[0] = _advanced(at[0], 0)
            elif position.move < len(moves):
                move = moves[position.move]
                with context.timed(type(move).__name__.lower()):
                    at.append(move.run(at.pop(), context))
                at[0] = _advanced(at[0], len(moves))
            else:
                at[0] = _advanced(at[0], len(moves))
            context.stop_when_asked(at[0])
            if at[0].position.round == len(schedule) or context.layout.agree(saver.due(at[0].step)):
                saver.save(at[0])
    except Stopped as stopped:
        saver.save(stopped.state)
        raise
    return replace(at[0], position=Position())


def _advanced(state: RunState, moves: int) -> RunState:
    """The state with one more move of its round finished, and with its last the round."""
    round, move = state.position.round, state.position.move + 1
    if move < moves:
        return replace(state, position=Position(round, move))
    return replace(state, round=state.round + 1, position=Position(round + 1))


def check_schedule(schedule: Schedule, state: RunState, context: Context) -> None:
    """Checks what is left of a schedule before it runs.

    Raises:
        ValueError: a move reads what is neither in the state nor written by an earlier move, or goes on with the
            state of another solver.
        InputError: what a move itself can know: a batch larger than its data, an estimator that does not suit the
            problem or the optimizer.
    """
    present = {
        f"{kind}:{name}"
        for kind, names in (
            ("model", state.models),
            ("data", state.data),
            ("signal", state.signals),
            ("set", state.sets),
            ("result", state.results),
        )
        for name in names
    }
    if state.solver is not None:
        present.add("solver")
    left = [each.moves for each in schedule[state.position.round :]]
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
            # The first move alone can be under way.
            state = replace(move.check(state, context), position=Position())
            present.update(move.writes)
