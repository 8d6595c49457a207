"""How likely a model finds each of several continuations of a prompt, the prompt read once."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int

from models.attention import Keys, Queries, causal_mask, masked_attention
from models.block import Stream, block, normalise
from models.cache import Read, power_of_two, prefill
from models.config import DecoderConfig
from models.decoder import embed, turns
from models.errors import ModelError
from models.parameters import Params
from models.prompts import Prompt, check_tokens
from models.rollout import in_every_process, shares_of
from models.rope import segment_positions
from models.scores import LOGITS_AT_ONCE, next_token_scores

BATCH_PROMPTS = 32
"""How many prompts are read side by side unless told otherwise."""
SCORES_AT_ONCE = 2**26
"""Most attention scores of continuations that a layer holds; fewer prompts are read side by side to keep to it."""


Batch = Mapping[str, Any]


class ChoiceScores(NamedTuple):
    """What a model says of the continuations of one prompt.

    Attributes:
        log_likelihoods: log p(continuation | prompt), the sum over its tokens, in nats.
        lengths: how many tokens each has; log_likelihoods / lengths is the length-normalised score.
        greedy: whether each of its tokens is the most probable one.
    """

    log_likelihoods: Float[np.ndarray, " choices"]
    lengths: Int[np.ndarray, " choices"]
    greedy: Bool[np.ndarray, " choices"]


def choice_log_likelihoods(
    params: Params,
    prompts: Sequence[Prompt],
    continuations: Sequence[Sequence[Prompt]],
    config: DecoderConfig,
    *,
    batch_prompts: int = BATCH_PROMPTS,
    attention: str = "auto",
    sharding: NamedSharding | None = None,
) -> list[ChoiceScores]:
    """Scores continuations of prompts, each of which is read once, whatever the number of its continuations.

    log p(c | x) = sum over k of log p(c_k | x, c_<k). The first terms come from the scores after the prompt. For the
    others the continuations of a prompt, without their last tokens, stand in one sequence behind it: each token sees
    the prompt and the tokens before it in its own continuation, and positions go on from the prompt for each. So
    continuations of one token cost nothing, ragged ones no padding.

    Args:
        params: as `models.decoder.declare` describes them; computation is in their type, sums and softmaxes in float32.
        prompts: token ids, at least one a prompt.
        continuations: for each prompt its continuations, any number of any lengths. Where all prompts share them,
            give `[shared] * len(prompts)`.
        config: the architecture.
        batch_prompts: how many prompts are read side by side.
        attention: path for reading prompts, as for `models.generate_each`.
        sharding: splits prompts over devices: a `NamedSharding` of one axis of prompts.

    Returns:
        The scores of each prompt's continuations, in the order of the prompts.

    Raises:
        ModelError: before anything is computed, for prompts or continuations that are empty, hold tokens that the
            model does not know, or are too long for it.

    Examples:
        >>> from models import init, small
        >>> config = small(13, 8, heads=2, kv_heads=1, mlp_width=8)
        >>> params = init(config, jax.random.key(0))
        >>> scores, = choice_log_likelihoods(params, [[1, 2]], [[[token] for token in range(13)]], config)
        >>> round(float(np.exp(scores.log_likelihoods).sum()), 4), int(scores.greedy.sum())
        (1.0, 1)
    """
    if batch_prompts < 1:
        raise ModelError(f"batch_prompts must be at least 1, not {batch_prompts}")
    _check(prompts, continuations, config)
    found: dict[int, ChoiceScores] = {}
    shares, groups = shares_of(sharding), _by_size(prompts, continuations)
    for (positions, inner), numbers in groups.items():
        rows = min(batch_prompts, power_of_two(len(numbers)))
        if inner:
            rows = min(rows, max(1, SCORES_AT_ONCE // (config.heads * inner * (positions + inner))))
        rows = -(-rows // shares) * shares
        for start in range(0, len(numbers), rows):
            part = numbers[start : start + rows]
            batch = _batch_of([(prompts[n], continuations[n]) for n in part], rows, positions, inner)
            placed = batch if sharding is None else jax.device_put(batch, sharding)
            scored = jax.device_get(_scored(params, placed, config, attention, sharding))
            for row, number in enumerate(part):
                found[number] = _summed(scored, row, continuations[number])
    return [found[number] for number in range(len(prompts))]


@partial(jax.jit, static_argnums=(2, 3, 4))
def _scored(
    params: Params, batch: Batch, config: DecoderConfig, attention: str, sharding: NamedSharding | None
) -> dict[str, Array]:
    """-log p of each first token, and of each that follows one inside; whether it is the argmax."""
    scores, read = prefill(params, batch["tokens"], batch["segments"], config, attention)
    first_loss = -jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), batch["first"], axis=-1)
    first_best = jnp.argmax(scores, axis=-1)[:, None] == batch["first"]
    loss, best = jnp.zeros(batch["inner"].shape), jnp.zeros(batch["inner"].shape, bool)
    if loss.size:
        x = _read_behind(params, batch, read, config)
        chunk = max(1, LOGITS_AT_ONCE // (x.shape[0] * config.vocab_size))
        loss, best = next_token_scores(params, x, batch["following"], chunk)
    scored = {"first_loss": first_loss, "first_best": first_best, "loss": loss, "best": best}
    return in_every_process(scored, sharding)


def _read_behind(params: Params, batch: Batch, read: Read, config: DecoderConfig) -> Stream:
    """Final hidden states of the continuations: each token sees the prompt and its own continuation."""
    lengths = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
    positions = lengths + segment_positions(batch["inner_segments"])
    turn = turns(positions, config)
    own = causal_mask(batch["inner_segments"], config.window)
    prompt_positions = jnp.arange(batch["tokens"].shape[1]) + lengths - batch["tokens"].shape[1]
    prompt = jnp.broadcast_to(prompt_positions[:, None] >= 0, (*own.shape[:2], batch["tokens"].shape[1]))
    if config.window is not None:
        prompt &= positions[:, :, None] - prompt_positions[:, None] < config.window
    mask = jnp.concatenate([prompt, own], axis=2)

    def layer(x: Stream, inputs: tuple[Params, Keys, Keys]) -> tuple[Stream, None]:
        weights, keys, values = inputs

        def attend(query: Queries, key: Keys, value: Keys) -> tuple[Queries, None]:
            key, value = jnp.concatenate([keys, key], axis=1), jnp.concatenate([values, value], axis=1)
            return masked_attention(query, key, value, mask), None

        return block(weights, x, turn, config, attend)

    x = embed(params, batch["inner"], positions)
    x, _ = jax.lax.scan(layer, x, (params["layers"], *read))
    return normalise(params["final_norm"], x, config)


def _by_size(
    prompts: Sequence[Prompt], continuations: Sequence[Sequence[Prompt]]
) -> dict[tuple[int, int], list[int]]:
    """The numbers of prompts by room for a prompt and for its continuations, in powers of two: few programs."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (prompt, choices) in enumerate(zip(prompts, continuations, strict=True)):
        inner = sum(len(choice) - 1 for choice in choices)
        size = power_of_two(max(32, len(prompt))), power_of_two(max(32, inner)) if inner else 0
        groups.setdefault(size, []).append(number)
    return groups


def _batch_of(
    texts: list[tuple[Prompt, Sequence[Prompt]]], rows: int, positions: int, inner: int
) -> dict[str, np.ndarray]:
    """Prompts that end at the last position; their continuations in one sequence, without their last tokens."""
    # Choices in powers of two as well, which all prompts of a run mostly share.
    most = power_of_two(max(len(choices) for _, choices in texts))
    sizes = {"tokens": positions, "segments": positions, "first": most}
    sizes |= dict.fromkeys(("inner", "inner_segments", "following"), inner)
    batch = {name: np.zeros((rows, size), np.int32) for name, size in sizes.items()}
    for row, (prompt, choices) in enumerate(texts):
        batch["tokens"][row, positions - len(prompt) :] = prompt
        batch["segments"][row, positions - len(prompt) :] = 1
        place = 0
        for number, choice in enumerate(choices):
            batch["first"][row, number] = choice[0]
            own = slice(place, place + len(choice) - 1)
            batch["inner"][row, own], batch["following"][row, own] = choice[:-1], choice[1:]
            batch["inner_segments"][row, own] = number + 1
            place = own.stop
    return batch


def _summed(scored: Mapping[str, np.ndarray], row: int, choices: Sequence[Prompt]) -> ChoiceScores:
    lengths = np.asarray([len(choice) for choice in choices], np.int64)
    owner = np.repeat(np.arange(len(choices)), lengths - 1)

    def added(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, weights=values[row, : len(owner)], minlength=len(choices))

    loss = scored["first_loss"][row, : len(choices)] + added(scored["loss"])
    wrong = added(~scored["best"]) > 0
    return ChoiceScores(-loss, lengths, scored["first_best"][row, : len(choices)] & ~wrong)


def _check(
    prompts: Sequence[Prompt], continuations: Sequence[Sequence[Prompt]], config: DecoderConfig
) -> None:
    if len(prompts) != len(continuations):
        raise ModelError(
            f"{len(continuations)} lists of continuations for {len(prompts)} prompts: give one a prompt"
        )
    check_tokens(prompts, "prompt", config)
    # Prompts often share one list, which is then looked at once.
    seen: set[int] = set()
    for number, (prompt, choices) in enumerate(zip(prompts, continuations, strict=True)):
        if len(choices) == 0:
            raise ModelError(f"prompt {number} has no continuation to score: give it one at least")
        if id(choices) not in seen:
            seen.add(id(choices))
            check_tokens(choices, f"prompt {number}: continuation", config)
        longest = max(map(len, choices))
        if len(prompt) + longest > config.max_positions:
            raise ModelError(
                f"prompt {number} has {len(prompt)} tokens and a continuation of {longest}: the model is made for "
                f"{config.max_positions} positions; shorten the prompt"
            )
