"""Answers of a model to prompts of any lengths: greedy or sampled, exact token ids with their log-probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from models.attention import PATHS
from models.config import DecoderConfig
from models.distribution import Filters
from models.errors import ModelError
from models.parameters import Params
from models.prompts import Prompt, check_tokens
from models.queue import finished_rows
from models.rollout import Drawing, Program, Rows

BATCH_ROWS = 32
"""How many rows are continued side by side unless told otherwise."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: how many tokens an answer has at most, the stop token included. One whose prompt leaves the
            model less room is cut there.
        temperature: scores are divided by it before the softmax; 0 takes the argmax, whatever else is set.
        top_k: draws among so many most probable tokens; None for all.
        top_p: draws among the fewest most probable tokens that hold this share of the probability; 1 for all.
        stop_tokens: each ends an answer, and is its last token.

    Raises:
        ModelError: for a value out of range.

    Examples:
        >>> Sampling(max_new_tokens=0)
        Traceback (most recent call last):
        ...
        models.errors.ModelError: max_new_tokens must be at least 1, not 0
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, inside, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or positive"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("stop_tokens", all(token >= 0 for token in self.stop_tokens), "token ids"),
        ):
            if not inside:
                raise ModelError(f"{name} must be {allowed}, not {getattr(self, name)}")


class Answer(NamedTuple):
    """What was generated after one prompt, token by token.

    Attributes:
        tokens: the exact ids, without the prompt; a stop token that came is the last of them.
        behaviour: log-probability of each under the distribution that it was drawn from: after temperature, `top_k`
            and `top_p`. A greedy token is drawn with certainty: 0.
        policy: log-probability of each under the model itself: the softmax of its logits, at temperature 1, over the
            whole vocabulary.
        ended: whether the model ended the answer by a stop token; otherwise it was cut.
    """

    tokens: Int[np.ndarray, " tokens"]
    behaviour: Float[np.ndarray, " tokens"]
    policy: Float[np.ndarray, " tokens"]
    ended: bool


def row_keys(key: PRNGKeyArray | Array, ids: Any, draw: int = 0) -> Key[Array, " rows"]:
    """A key for each row, from the row's id and the number of the draw alone.

    Token n of a row is drawn with `jax.random.fold_in(row_key, n)`, so that what a row says depends neither on the
    rows beside it nor on their order.

    Args:
        key: of the whole run.
        ids: integers that name the rows.
        draw: tells several answers to one prompt apart.

    Examples:
        >>> bool((row_keys(jax.random.key(0), [3, 5])[1] == row_keys(jax.random.key(0), [5])[0]).all())
        True
    """
    return _row_keys(key, np.asarray(ids, np.uint32), np.uint32(draw))


def generate(
    params: Params,
    prompts: Sequence[Prompt],
    keys: Array | None,
    sampling: Sampling,
    config: DecoderConfig,
    **how: Any,
) -> list[Answer]:
    """Answers prompts of any lengths; arguments as for `generate_each`.

    Returns:
        An answer a prompt, in the order of the prompts.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> params = init(config, jax.random.key(0))
        >>> answers = generate(params, [[1, 2, 3], [4]], None, Sampling(max_new_tokens=2), config)
        >>> [len(answer.tokens) for answer in answers]
        [2, 2]
    """
    found = dict(generate_each(params, prompts, keys, sampling, config, **how))
    return [found[number] for number in range(len(prompts))]


def generate_each(
    params: Params,
    prompts: Sequence[Prompt],
    keys: Array | None,
    sampling: Sampling,
    config: DecoderConfig,
    *,
    limits: Sequence[int] | None = None,
    batch_rows: int = BATCH_ROWS,
    attention: str = "auto",
    sharding: NamedSharding | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Answers prompts of any lengths, and gives each answer as soon as the host sees it.

    Prompts queue up: as rows end, the next prompts take their places, so that a batch stays full whatever the lengths
    of the answers. What is said does not depend on it, but for rounding: a token's scores may differ in their last
    bits from those in another batch, which matters where two tokens are equally good to that precision.

    Programs are compiled once for each number of rows, room for a row and width of prompts, the latter two rounded up
    to 16, 24, 32, 48, 64, ...

    Args:
        params: as `models.decoder.declare` describes them; computation is in their type.
        prompts: token ids, with any start token.
        keys: one a prompt, from `row_keys`; None at temperature 0, where nothing is drawn.
        sampling: how tokens are drawn.
        config: the architecture.
        limits: fewer new tokens than `sampling.max_new_tokens` for each prompt, say the length of a reference answer.
        batch_rows: how many rows are continued side by side.
        attention: path for reading prompts, as in `models.decoder.hidden`; `auto` is `exact` for prompts of up to 512
            tokens, else `blockwise`.
        sharding: splits rows over devices: a `NamedSharding` of one axis of rows. Everything else follows the params.

    Yields:
        The number of a prompt and its answer, each prompt once, those that end first first.

    Raises:
        ModelError: before anything is computed, for prompts that are empty, hold tokens that the model does not know
            or leave it no room, and for keys and limits that do not fit them.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> params, sampling = init(config, jax.random.key(0)), Sampling(3, temperature=1.0)
        >>> prompts, keys = [[1, 2, 3], [4]], row_keys(jax.random.key(1), [0, 1])
        >>> for number, answer in generate_each(params, prompts, keys, sampling, config, limits=[3, 1]):
        ...     print(number, answer.tokens.shape)
        0 (3,)
        1 (1,)
    """
    most = _limits(prompts, keys, sampling, config, limits)
    if batch_rows < 1:
        raise ModelError(f"batch_rows must be at least 1, not {batch_rows}")
    data, implementation = _key_data(keys, len(prompts))
    stops = np.full(-(-max(1, len(sampling.stop_tokens)) // 4) * 4, -1, np.int32)
    stops[: len(sampling.stop_tokens)] = sampling.stop_tokens
    drawing = Drawing(filters_of(sampling), stops)
    if attention != "auto" and attention not in PATHS:
        raise ModelError(f"unknown attention {attention!r}: choose one of auto, {', '.join(sorted(PATHS))}")
    program = Program(config, attention, implementation, sharding)
    if len(prompts) == 0:
        return iter(())
    rows = finished_rows(params, prompts, data, most, drawing, program, batch_rows)
    return ((number, _answer(found, row)) for number, found, row in rows)


def _answer(found: Rows, row: int) -> Answer:
    made = int(found.made[row])
    tokens, behaviour, policy = (
        np.array(column[row, :made]) for column in (found.tokens, found.behaviour, found.policy)
    )
    return Answer(tokens, behaviour, policy, bool(found.ended[row]))


def filters_of(sampling: Sampling) -> Filters:
    """What is made of the softmax by these settings."""
    if sampling.temperature == 0:
        return Filters()
    return Filters(
        jnp.float32(sampling.temperature),
        None if sampling.top_k is None else jnp.int32(sampling.top_k),
        None if sampling.top_p == 1 else jnp.float32(sampling.top_p),
    )


def _key_data(keys: Array | None, count: int) -> tuple[np.ndarray, Any]:
    if keys is None:
        return np.zeros((count, 2), np.uint32), "threefry2x32"
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(keys)
    return np.asarray(jax.random.key_data(keys)), jax.random.key_impl(keys)


def _limits(
    prompts: Sequence[Prompt],
    keys: Array | None,
    sampling: Sampling,
    config: DecoderConfig,
    limits: Sequence[int] | None,
) -> Int[np.ndarray, " prompts"]:
    """How many tokens each answer may have; refuses what cannot be answered."""
    if keys is None and sampling.temperature > 0:
        raise ModelError("sampling at a temperature needs a key a prompt: give row_keys(key, ids)")
    for name, given in (("keys", keys), ("limits", limits)):
        if given is not None and len(given) != len(prompts):
            raise ModelError(f"{len(given)} {name} for {len(prompts)} prompts: give one a prompt")
    check_tokens(prompts, "prompt", config)
    for number, prompt in enumerate(prompts):
        if len(prompt) >= config.max_positions:
            raise ModelError(
                f"prompt {number} has {len(prompt)} tokens and leaves no room for an answer: the model is made for "
                f"{config.max_positions} positions; shorten it"
            )
    room = config.max_positions - np.asarray([len(prompt) for prompt in prompts], np.int32)
    asked = np.full(len(prompts), sampling.max_new_tokens, np.int32)
    if limits is not None and len(limits):
        if min(limits) < 1:
            raise ModelError(f"limit {int(np.argmin(limits))} must be at least 1, not {min(limits)}")
        asked = np.minimum(asked, np.asarray(limits, np.int32))
    return np.minimum(asked, room)


@jax.jit
def _row_keys(key: Array, ids: Array, draw: Array) -> Array:
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), draw))(ids)
