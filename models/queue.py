"""The queue: prompts wait, rows are continued side by side, and one that has ended makes room for the next prompt."""

from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int, UInt

from models.cache import power_of_two, room_for
from models.parameters import Params
from models.rollout import (
    STEPS_AT_ONCE,
    Drawing,
    Program,
    Prompts,
    Rows,
    advance,
    begin,
    refill,
    resized,
    shares_of,
)

REFILL_SHARE = 8
"""Rows are refilled once one in so many is vacant."""
_LEAST_SLOTS = 64


def finished_rows(
    params: Params,
    prompts: Sequence[Sequence[int] | np.ndarray],
    keys: UInt[np.ndarray, "prompts words"],
    limits: Int[np.ndarray, " prompts"],
    drawing: Drawing,
    program: Program,
    batch_rows: int,
) -> Iterator[tuple[int, Rows, int]]:
    """Continues every prompt, and gives the rows that have ended whenever the host looks.

    The longest prompts go first, so that prompts read together are of like lengths.

    Args:
        params: the model.
        prompts: at least one.
        keys: data of a key a prompt.
        limits: how many tokens may be generated for each.
        drawing: how.
        program: what is compiled.
        batch_rows: how many rows are continued side by side.

    Yields:
        The number of a prompt, the rows as NumPy arrays, and which of them is the prompt's.
    """
    lengths = np.asarray([len(prompt) for prompt in prompts])
    waiting = np.argsort(lengths, kind="stable").tolist()  # the longest last, where they are taken
    shares = shares_of(program.sharding)
    at_once = _multiple(min(batch_rows, power_of_two(len(prompts))), shares)
    reading = _multiple(max(1, at_once // REFILL_SHARE), shares)
    most, dtype = room_for(int(limits.max())), params["embedding"]["table"].dtype
    totals = lengths + limits

    def slots_for(numbers: Iterable[int], width: int) -> int:
        """Room for the next steps of rows, and for prompts of a width to be laid in whole."""
        need = max(min(read[number] + STEPS_AT_ONCE, int(totals[number])) for number in numbers)
        need = max(min(need, program.config.window or need), width)
        return min(max(_LEAST_SLOTS, power_of_two(need)), room_for(int(totals.max())))

    owner: dict[int, int] = {}
    read = dict(enumerate(lengths.tolist()))
    state = begin(program, at_once, slots_for([waiting[-1]], 0), most, keys.shape[1], dtype)
    while waiting or owner:
        vacant = [row for row in range(at_once) if row not in owner]
        while waiting and len(vacant) >= min(reading, len(waiting)):
            taken = {vacant.pop(0): waiting.pop() for _ in range(min(reading, len(waiting)))}
            owner |= taken
            batch = _prompts_of(taken, prompts, keys, limits, reading, filler=at_once)
            state = resized(state, slots_for(owner.values(), batch.tokens.shape[1]), program)
            state = refill(params, state, batch, drawing, program)
        state = resized(state, slots_for(owner.values(), 0), program)
        enough = at_once - min(reading, len(waiting)) if waiting else 0
        state, rows = advance(params, state, drawing, np.int32(enough), program)
        found = jax.device_get(rows)
        read |= {number: int(found.length[row]) for row, number in owner.items()}
        for row in [row for row in owner if not found.running[row]]:
            yield owner.pop(row), found, row


def _prompts_of(
    taken: dict[int, int],
    prompts: Sequence[Sequence[int] | np.ndarray],
    keys: UInt[np.ndarray, "prompts words"],
    limits: Int[np.ndarray, " prompts"],
    reading: int,
    filler: int,
) -> Prompts:
    width = room_for(max(len(prompts[number]) for number in taken.values()))
    batch = Prompts(
        row=np.full(reading, filler, np.int32),
        tokens=np.zeros((reading, width), np.int32),
        segments=np.zeros((reading, width), np.int32),
        limit=np.ones(reading, np.int32),
        key=np.zeros((reading, keys.shape[1]), np.uint32),
    )
    for place, (row, number) in enumerate(taken.items()):
        prompt = prompts[number]
        batch.row[place], batch.limit[place], batch.key[place] = row, limits[number], keys[number]
        batch.tokens[place, width - len(prompt) :] = prompt
        batch.segments[place, width - len(prompt) :] = 1
    return batch


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of
