"""The queue: prompts wait, rows are continued side by side, and one that has ended makes room for the next prompt."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int, UInt

from models.cache import room_for
from models.parameters import Params
from models.rollout import Drawing, Program, Prompts, Rows, advance, begin, refill, shares_of

REFILL_SHARE = 4
"""Rows are refilled once one in so many is vacant: reading a few prompts at once costs little more than reading one."""


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
    waiting = list(np.argsort(lengths, kind="stable"))  # the longest last, where they are taken
    shares = shares_of(program.sharding)
    at_once = _multiple(min(batch_rows, 1 << (len(prompts) - 1).bit_length()), shares)
    reading = _multiple(max(1, at_once // REFILL_SHARE), shares)
    window = program.config.window or np.inf
    # Nobody sees beyond the window, but a prompt is laid in whole.
    slots = room_for(int(max(lengths.max(), min(window, (lengths + limits).max()))))
    dtype = params["embedding"]["table"].dtype
    state = begin(program, at_once, slots, room_for(int(limits.max())), keys.shape[1], dtype)
    owner: dict[int, int] = {}
    rows = None

    while waiting or owner:
        vacant = [row for row in range(at_once) if row not in owner]
        while waiting and len(vacant) >= min(reading, len(waiting)):
            taken = [(vacant.pop(0), int(waiting.pop())) for _ in range(min(reading, len(waiting)))]
            owner |= dict(taken)
            batch = _prompts_of(taken, prompts, keys, limits, reading, filler=at_once)
            state, rows = refill(params, state, batch, drawing, program)
        enough = at_once - min(reading, len(waiting)) if waiting else len(owner) // 2
        state, rows = advance(params, state, drawing, np.int32(enough), program)
        found = jax.device_get(rows)
        for row in [row for row in owner if not found.running[row]]:
            yield owner.pop(row), found, row


def _prompts_of(
    taken: list[tuple[int, int]],
    prompts: Sequence[Sequence[int] | np.ndarray],
    keys: UInt[np.ndarray, "prompts words"],
    limits: Int[np.ndarray, " prompts"],
    reading: int,
    filler: int,
) -> Prompts:
    width = room_for(max(len(prompts[number]) for _, number in taken))
    batch = Prompts(
        row=np.full(reading, filler, np.int32),
        tokens=np.zeros((reading, width), np.int32),
        segments=np.zeros((reading, width), np.int32),
        limit=np.ones(reading, np.int32),
        key=np.zeros((reading, keys.shape[1]), np.uint32),
    )
    for place, (row, number) in enumerate(taken):
        prompt = prompts[number]
        batch.row[place], batch.limit[place], batch.key[place] = row, limits[number], keys[number]
        batch.tokens[place, width - len(prompt) :] = prompt
        batch.segments[place, width - len(prompt) :] = 1
    return batch


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of
