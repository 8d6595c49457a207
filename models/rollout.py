"""Rows under way on the device: prompts are laid into vacant ones, and all are continued side by side."""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt

from models.cache import Cache, decode, empty_cache, lay, prefill
from models.config import DecoderConfig
from models.distribution import Filters, draw
from models.parameters import Params

STEPS_AT_ONCE = 64
"""Tokens a row between two looks from the host, which can be interrupted only then."""
Tree = TypeVar("Tree")


class Rows(NamedTuple):
    """What belongs to each row.

    Attributes:
        token: the last token, which is not read yet.
        length: how many tokens are read.
        made: how many are generated.
        limit: how many may be.
        running: whether another is to come.
        ended: whether a stop token came.
        key: data of the row's key.
        tokens: what was generated; zeros after that.
        behaviour: as in `models.sampling.Answer`.
        policy: as in `models.sampling.Answer`.
    """

    token: Int[Array, " rows"]
    length: Int[Array, " rows"]
    made: Int[Array, " rows"]
    limit: Int[Array, " rows"]
    running: Bool[Array, " rows"]
    ended: Bool[Array, " rows"]
    key: UInt[Array, "rows words"]
    tokens: Int[Array, "rows most"]
    behaviour: Float[Array, "rows most"]
    policy: Float[Array, "rows most"]


class State(NamedTuple):
    """All rows, what they have read, and the slot that is written next."""

    rows: Rows
    cache: Cache
    slot: Int[Array, ""]


class Prompts(NamedTuple):
    """Prompts for vacant rows.

    Attributes:
        row: which row each gets; one that there is not for a filler.
        tokens: padded on the left.
        segments: 1 on a prompt, 0 on padding.
        limit: how many tokens may be generated.
        key: data of the row's key.
    """

    row: Int[Array | np.ndarray, " prompts"]
    tokens: Int[Array | np.ndarray, "prompts positions"]
    segments: Int[Array | np.ndarray, "prompts positions"]
    limit: Int[Array | np.ndarray, " prompts"]
    key: UInt[Array | np.ndarray, "prompts words"]


class Drawing(NamedTuple):
    """What is made of the scores, and which tokens end a row (-1 is none)."""

    filters: Filters
    stops: Int[Array | np.ndarray, " stops"]


@dataclass(frozen=True)
class Program:
    """What the compiled programs depend on besides shapes.

    Attributes:
        config: the architecture.
        attention: path for reading prompts.
        key_impl: kind of the rows' keys.
        sharding: how rows are split over devices; None leaves them where they are.
    """

    config: DecoderConfig
    attention: str
    key_impl: Any
    sharding: NamedSharding | None = None

    def split(self, state: State) -> State:
        """The state with each device's rows on it."""
        if self.sharding is None:
            return state
        mesh, axes = self.sharding.mesh, self.sharding.spec[0]

        def put(tree: Any, *spec: Any) -> Any:
            return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*spec)))

        return State(put(state.rows, axes), put(state.cache, None, axes), put(state.slot))


def shares_of(sharding: NamedSharding | None) -> int:
    """In how many parts a sharding splits rows: what their number must be a multiple of."""
    if sharding is None:
        return 1
    axes = sharding.spec[0] if len(sharding.spec) else None
    names = (axes,) if isinstance(axes, str) else axes or ()
    return prod(sharding.mesh.shape[name] for name in names)


def in_every_process(tree: Tree, sharding: NamedSharding | None) -> Tree:
    """A copy of each array on every device that shares the rows, so that any process can read it."""
    if sharding is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(sharding.mesh, PartitionSpec()))


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def begin(program: Program, rows: int, slots: int, most: int, words: int, dtype: Any) -> State:
    """Makes room for rows of up to `slots` tokens of which `most` are generated; all of them are vacant."""
    cache = empty_cache(program.config, rows, slots, dtype)
    return program.split(State(_fresh(rows, most, words), cache, jnp.int32(0)))


@partial(jax.jit, static_argnums=4, donate_argnums=1)
def refill(params: Params, state: State, prompts: Prompts, drawing: Drawing, program: Program) -> State:
    """Reads prompts, lays them into their rows, and draws the first token of each."""
    scores, read = prefill(
        params, jnp.asarray(prompts.tokens), jnp.asarray(prompts.segments), program.config, program.attention
    )
    count, most = prompts.tokens.shape[0], state.rows.tokens.shape[1]
    fresh = _fresh(count, most, prompts.key.shape[1])._replace(
        length=jnp.sum(prompts.segments > 0, axis=1, dtype=jnp.int32),
        limit=jnp.asarray(prompts.limit),
        running=jnp.ones(count, bool),
        key=jnp.asarray(prompts.key),
    )
    fresh = _drawn(fresh, scores, drawing, program)
    rows = jax.tree.map(lambda kept, new: kept.at[prompts.row].set(new, mode="drop"), state.rows, fresh)
    cache = lay(state.cache, read, jnp.asarray(prompts.row), state.slot)
    return program.split(State(rows, cache, state.slot))


@partial(jax.jit, static_argnums=4, donate_argnums=1)
def advance(
    params: Params, state: State, drawing: Drawing, enough: Int[Array, ""], program: Program
) -> tuple[State, Rows]:
    """Continues rows until no more than `enough` of them run, but for `STEPS_AT_ONCE` tokens at most.

    Returns:
        The state, and its rows in every process.
    """

    def unfinished(carry: tuple[Array, State]) -> Array:
        step, state = carry
        return (step < STEPS_AT_ONCE) & (jnp.sum(state.rows.running) > enough)

    def step(carry: tuple[Array, State]) -> tuple[Array, State]:
        step, (rows, cache, slot) = carry
        length = rows.length + rows.running
        # A vacant row sees its own slot at least.
        scores, cache = decode(params, rows.token, jnp.maximum(length, 1), slot, cache, program.config)
        rows = _drawn(rows._replace(length=length), scores, drawing, program)
        return step + 1, State(rows, cache, (slot + 1) % cache.slots)

    _, state = jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))
    return program.split(state), in_every_process(state.rows, program.sharding)


def resized(state: State, slots: int, program: Program) -> State:
    """The state with another number of slots, which holds the last ones of those that there are."""
    return state if slots == state.cache.slots else _resized(state, slots, program)


@partial(jax.jit, static_argnums=(1, 2))
def _resized(state: State, slots: int, program: Program) -> State:
    kept = min(slots, state.cache.slots)
    last = (state.slot - kept + jnp.arange(kept)) % state.cache.slots

    def cut(x: Array, axis: int) -> Array:
        room = [(0, slots - kept if place == axis else 0) for place in range(x.ndim)]
        return jnp.pad(jnp.take(x, last, axis=axis), room)

    cache = Cache(cut(state.cache.keys, 4), cut(state.cache.values, 3))
    return program.split(State(state.rows, cache, jnp.int32(kept % slots)))


def _fresh(rows: int, most: int, words: int) -> Rows:
    number, flag = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    values = jnp.zeros((rows, most), jnp.float32)
    return Rows(
        token=number,
        length=number,
        made=number,
        limit=number,
        running=flag,
        ended=flag,
        key=jnp.zeros((rows, words), jnp.uint32),
        tokens=jnp.zeros((rows, most), jnp.int32),
        behaviour=values,
        policy=values,
    )


def _drawn(rows: Rows, scores: Float[Array, "rows vocab"], drawing: Drawing, program: Program) -> Rows:
    """The running rows with one more token each."""
    keys = jax.random.wrap_key_data(rows.key, impl=program.key_impl)
    drawn = draw(scores, jax.vmap(jax.random.fold_in)(keys, rows.made), drawing.filters)
    place = rows.running[:, None] & (jnp.arange(rows.tokens.shape[1]) == rows.made[:, None])

    def with_new(kept: Array, new: Array) -> Array:
        return jnp.where(place, new[:, None].astype(kept.dtype), kept)

    ended = rows.running & jnp.any(drawn.token[:, None] == drawing.stops, axis=1)
    made = rows.made + rows.running
    return rows._replace(
        token=jnp.where(rows.running, drawn.token, rows.token),
        made=made,
        running=rows.running & ~ended & (made < rows.limit),
        ended=rows.ended | ended,
        tokens=with_new(rows.tokens, drawn.token),
        behaviour=with_new(rows.behaviour, drawn.behaviour),
        policy=with_new(rows.policy, drawn.policy),
    )
