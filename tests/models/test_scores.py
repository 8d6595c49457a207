from collections.abc import Callable
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import models
from models import DecoderConfig, ModelError, scores

CONFIG = DecoderConfig(vocab_size=2048, width=8, layers=1, heads=2, kv_heads=1, mlp_width=8)
PARAMS = models.init(CONFIG, jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (4, 33), 0, CONFIG.vocab_size)
BATCH = {"tokens": TOKENS, "segments": jnp.ones_like(TOKENS)}


def total_loss(params: dict, batch: dict = BATCH, **options: object) -> jax.Array:
    return jnp.sum(models.token_scores(params, batch, CONFIG, **options).loss)


def bytes_by_default() -> int:
    return bytes_of(jax.grad(lambda params: total_loss(params)))


@cache
def bytes_needed(chunk: int) -> int:
    return bytes_of(jax.grad(partial(total_loss, chunk=chunk)))


def bytes_of(gradient: Callable[[dict], dict]) -> int:
    return jax.jit(gradient).lower(PARAMS).compile().memory_analysis().temp_size_in_bytes


def test_all_logits_are_never_held() -> None:
    all_logits = TOKENS.size * CONFIG.vocab_size * 4
    assert bytes_needed(chunk=33) > all_logits
    assert bytes_needed(chunk=3) < all_logits / 2


def test_the_default_keeps_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bytes_by_default()
    monkeypatch.setattr(scores, "LOGITS_AT_ONCE", 3 * 4 * CONFIG.vocab_size)
    assert bytes_by_default() == bytes_needed(chunk=3) < whole
    # Never fewer than one position of every sequence.
    monkeypatch.setattr(scores, "LOGITS_AT_ONCE", 1)
    assert bytes_by_default() == bytes_needed(chunk=1)


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    def table_gradient(dtype: type, chunk: int) -> np.ndarray:
        params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
        # Every token the same: each piece adds to the same entries.
        batch = {**BATCH, "tokens": jnp.full_like(TOKENS, 7)}
        gradient = jax.jit(jax.grad(partial(total_loss, batch=batch, chunk=chunk)))(params)
        return np.asarray(gradient["embedding"]["table"], np.float32)

    exact = table_gradient(jnp.float32, 33)
    whole, pieces = (np.abs(table_gradient(jnp.bfloat16, chunk) - exact).max() for chunk in (33, 1))
    assert pieces < 1.5 * whole


def test_split_sequences_stay_split() -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    gradient = jax.jit(jax.grad(partial(total_loss, chunk=5)))
    chex.assert_trees_all_close(gradient(params, batch), gradient(PARAMS, BATCH), rtol=1e-4, atol=1e-5)
    # Nothing as long as a whole batch's stream travels between devices.
    text = gradient.lower(params, batch).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text


def test_no_positions_at_a_time_are_refused() -> None:
    with pytest.raises(ModelError, match="chunk must be at least 1 position, not 0"):
        models.token_scores(PARAMS, BATCH, CONFIG, chunk=0)
