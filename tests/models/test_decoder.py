import dataclasses
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import models
from models import DecoderConfig, ModelError
from models.attention import self_attention
from models.block import block
from models.decoder import embed
from models.layers import rms_norm
from models.rope import rotation, segment_positions

CONFIG = DecoderConfig(vocab_size=17, width=16, layers=2, heads=4, kv_heads=2, mlp_width=20, max_positions=32)
PARAMS = models.init(CONFIG, jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (4, 9), 0, CONFIG.vocab_size)
# A full row, a padded one, two packed ones with padding, and nothing but padding.
SEGMENTS = jnp.array([[1] * 9, [1] * 5 + [0] * 4, [1] * 3 + [2] * 4 + [0] * 2, [0] * 9])
# Fresh values of another key serve as a direction; those of the norms are ones.
DIRECTION = models.init(CONFIG, jax.random.key(2))
BATCH = {"tokens": TOKENS, "segments": SEGMENTS}


def total_loss(params: dict, batch: dict = BATCH, remat: str = "none") -> jax.Array:
    """Over every position, padding too: it takes part in each derivative."""
    return jnp.sum(models.token_scores(params, batch, CONFIG, remat=remat).loss)


def row_loss(params: dict, batch: dict = BATCH) -> jax.Array:
    return jnp.sum(jnp.where(batch["segments"] > 0, models.token_scores(params, batch, CONFIG).loss, 0.0))


@cache
def gradient_and_curvature(remat: str) -> tuple[dict, dict]:
    """The gradient of `total_loss`, and its derivative along `DIRECTION` in forward over reverse mode."""
    gradient = jax.grad(partial(total_loss, remat=remat))
    return jax.jit(lambda: jax.jvp(gradient, (PARAMS,), (DIRECTION,)))()


scores_of = jax.jit(lambda batch: models.token_scores(PARAMS, batch, CONFIG))
logits_of = jax.jit(lambda batch: models.logits(PARAMS, batch["tokens"], batch["segments"], CONFIG))
row_gradient = jax.jit(jax.grad(row_loss))


def test_windows_end_where_they_say() -> None:
    config = dataclasses.replace(CONFIG, layers=1, window=3)
    params = models.init(config, jax.random.key(0))
    changed = TOKENS.at[0, 2].add(1) % CONFIG.vocab_size
    logits = jax.jit(lambda tokens: models.logits(params, tokens, SEGMENTS[:1], config)[0])
    before, after = (logits(tokens[:1]) for tokens in (TOKENS, changed))
    moved = np.any(np.abs(before - after) > 1e-6, axis=-1)
    np.testing.assert_array_equal(moved, [position in (2, 3, 4) for position in range(9)])


def test_later_tokens_change_nothing_before_them() -> None:
    changed = {**BATCH, "tokens": TOKENS.at[0, 5].add(1) % CONFIG.vocab_size}
    before, after = logits_of(BATCH)[0], logits_of(changed)[0]
    np.testing.assert_array_equal(before[:5], after[:5])
    assert np.all(np.any(before[5:] != after[5:], axis=-1))


def test_packed_rows_equal_separate_rows() -> None:
    packed = scores_of(BATCH)
    apart = {
        "tokens": TOKENS.at[0, :3].set(TOKENS[2, :3]).at[1, :4].set(TOKENS[2, 3:7]),
        "segments": jnp.zeros_like(SEGMENTS).at[0, :3].set(1).at[1, :4].set(1),
    }
    alone = scores_of(apart)
    for row, (start, stop) in enumerate([(0, 3), (3, 7)]):
        np.testing.assert_allclose(packed.loss[2, start:stop], alone.loss[row, : stop - start], atol=1e-6)
        np.testing.assert_array_equal(packed.correct[2, start:stop], alone.correct[row, : stop - start])


def test_padding_changes_nothing() -> None:
    trimmed = scores_of({"tokens": TOKENS[1:2, :5], "segments": SEGMENTS[1:2, :5]})
    np.testing.assert_allclose(scores_of(BATCH).loss[1, :5], trimmed.loss[0], atol=1e-6)
    other = {**BATCH, "tokens": jnp.where(SEGMENTS > 0, TOKENS, 3)}
    chex.assert_trees_all_close(row_gradient(PARAMS, BATCH), row_gradient(PARAMS, other), atol=1e-6)


def test_token_scores_are_those_of_the_logits() -> None:
    scores = scores_of(BATCH)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits_of(BATCH), axis=-1))
    for position in range(1, 9):
        before, token = log_probabilities[0, position - 1], int(TOKENS[0, position])
        np.testing.assert_allclose(scores.loss[0, position], -before[token], rtol=1e-5)
        assert scores.correct[0, position] == (before.argmax() == token)
    best = log_probabilities[0, 0].argmax()
    assert scores_of({**BATCH, "tokens": TOKENS.at[0, 1].set(best)}).correct[0, 1]


def test_the_first_token_of_a_segment_is_predicted_from_nothing() -> None:
    scores = scores_of(BATCH)
    first = np.asarray(segment_positions(SEGMENTS)) == 0
    assert np.all(np.asarray(scores.loss)[first] == 0)
    assert not np.any(np.asarray(scores.correct)[first])
    assert np.all(np.asarray(scores.loss)[~first] > 0)


def test_scanned_layers_equal_a_loop() -> None:
    @jax.jit
    def looped() -> jax.Array:
        turn = rotation(segment_positions(SEGMENTS), CONFIG.head_dim, CONFIG.rope_theta)
        attend = self_attention("exact", SEGMENTS)
        x = embed(PARAMS, TOKENS, segment_positions(SEGMENTS))
        for number in range(CONFIG.layers):
            weights = jax.tree.map(lambda leaf: leaf[number], PARAMS["layers"])  # noqa: B023
            x, _ = block(weights, x, turn, CONFIG, lambda *qkv: (attend(*qkv), None))
        return rms_norm(PARAMS["final_norm"], x, CONFIG.norm_epsilon)

    scanned = jax.jit(lambda: models.hidden(PARAMS, TOKENS, SEGMENTS, CONFIG))
    np.testing.assert_allclose(scanned(), looped(), atol=2e-6)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_derivative(remat: str) -> None:
    expected = gradient_and_curvature("none")
    chex.assert_trees_all_close(gradient_and_curvature(remat), expected, rtol=1e-4, atol=1e-4)


def test_remat_keeps_less_for_the_backward_pass() -> None:
    batch = {"tokens": jnp.zeros((8, 32), jnp.int32), "segments": jnp.ones((8, 32), jnp.int32)}

    def bytes_needed(remat: str) -> int:
        gradient = jax.jit(jax.grad(partial(total_loss, batch=batch, remat=remat)))
        return gradient.lower(PARAMS).compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed("full") < bytes_needed("dots") < bytes_needed("none")


def test_first_derivative_modes_agree() -> None:
    gradient, _ = gradient_and_curvature("none")
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(DIRECTION), strict=True)
    inner = sum(np.vdot(a, b) for a, b in pairs)
    forward = jax.jit(lambda: jax.jvp(total_loss, (PARAMS,), (DIRECTION,))[1])()
    np.testing.assert_allclose(forward, inner, rtol=1e-4)


def test_second_derivative_modes_agree() -> None:
    def along(params: dict) -> jax.Array:
        return jax.jvp(total_loss, (params,), (DIRECTION,))[1]

    _, forward_over_reverse = gradient_and_curvature("none")
    reverse_over_forward = jax.jit(jax.grad(along))(PARAMS)
    chex.assert_trees_all_close(forward_over_reverse, reverse_over_forward, rtol=1e-3, atol=1e-3)


def test_nothing_is_nan_where_rows_are_padding() -> None:
    chex.assert_tree_all_finite(logits_of(BATCH))
    chex.assert_tree_all_finite(gradient_and_curvature("none"))
    chex.assert_tree_all_finite(gradient_and_curvature("dots"))


BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
ARCHITECTURES = {
    "llama with biases": BIASES | {"kv_heads": 1, "tied_embeddings": False},
    "mistral": {"window": 3},
    "qwen 3": {"qk_norm": True},
    "gpt-2": BIASES | {"positions": "learned", "norm": "layer", "mlp": "plain", "max_positions": 9},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_has_a_gradient(name: str) -> None:
    config = dataclasses.replace(CONFIG, **ARCHITECTURES[name])
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(models.token_scores(params, BATCH, config).loss)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(models.init(config, jax.random.key(0)))):
        assert np.max(np.abs(leaf)) > 0, jax.tree_util.keystr(path)


def test_float32_parameters_can_be_computed_with_in_bfloat16() -> None:
    def loss(params: dict, dtype: jnp.dtype) -> jax.Array:
        return jnp.mean(models.token_scores(models.cast(params, dtype), BATCH, CONFIG).loss)

    exact, narrow = (
        jax.jit(jax.grad(partial(loss, dtype=dtype)))(PARAMS) for dtype in (jnp.float32, jnp.bfloat16)
    )
    chex.assert_trees_all_equal_dtypes(exact, narrow, PARAMS)
    difference = optax.tree.norm(optax.tree.sub(exact, narrow)) / optax.tree.norm(exact)
    assert 0 < float(difference) < 0.05


def test_bfloat16_parameters_are_scored_in_float32() -> None:
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    logits = jax.jit(lambda: models.logits(narrow, TOKENS, SEGMENTS, CONFIG))()
    assert logits.dtype == jnp.float32
    scores, hidden = jax.eval_shape(
        lambda: (
            models.token_scores(narrow, BATCH, CONFIG),
            models.hidden(narrow, TOKENS, SEGMENTS, CONFIG),
        )
    )
    assert (scores.loss.dtype, hidden.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(logits, logits_of(BATCH), atol=2e-2)


def test_numpy_batches_are_accepted() -> None:
    host = {"tokens": np.asarray(TOKENS), "segments": np.asarray(SEGMENTS), "row_id": np.arange(4)}
    # Closed over, so that they reach the model as they are.
    found = jax.jit(lambda params: models.token_scores(params, host, CONFIG))(PARAMS)
    chex.assert_trees_all_close(found, scores_of(BATCH), atol=1e-6)


def test_nothing_compiles_twice() -> None:
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(params: dict, batch: dict) -> dict:
        return jax.grad(row_loss)(params, batch)

    first = gradient(PARAMS, BATCH)
    # What an optimizer step returns must be of the same types, or the second step would compile anew.
    moved = jax.tree.map(lambda param, slope: param - 0.1 * slope, PARAMS, first)
    second = gradient(moved, {"tokens": (TOKENS + 1) % CONFIG.vocab_size, "segments": SEGMENTS[::-1]})
    assert not np.array_equal(first["embedding"]["table"], second["embedding"]["table"])


def test_batches_over_devices_give_the_same_gradients() -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    chex.assert_trees_all_close(
        row_gradient(PARAMS, BATCH), row_gradient(params, batch), rtol=1e-4, atol=1e-6
    )


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ModelError, match="unknown remat 'some': choose one of dots, full, none"):
        models.hidden(PARAMS, TOKENS, SEGMENTS, CONFIG, remat="some")
    with pytest.raises(ModelError, match="unknown attention 'fast'"):
        models.logits(PARAMS, TOKENS, SEGMENTS, CONFIG, attention="fast")
