import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import causal_mask, masked_attention, self_attention, softmax
from models.config import RopeScaling
from models.errors import ModelError
from models.rope import rotate, rotation, segment_positions


def draws(*shapes: tuple[int, ...]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def test_mask_is_causal_within_a_segment_and_never_empty() -> None:
    mask = causal_mask(jnp.array([[1, 1, 2, 0]]))
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(mask[0], np.array(expected, bool))


def test_windows_count_the_token_itself() -> None:
    mask = causal_mask(jnp.array([[1, 1, 1, 1, 2, 2]]), 2)
    np.testing.assert_array_equal(np.sum(mask[0], axis=1), [1, 2, 2, 2, 1, 2])
    assert np.all(np.diagonal(mask[0]))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads_equal_a_loop_over_heads(kv_heads: int) -> None:
    query, key, value = draws((2, 5, 4, 6), (2, 5, kv_heads, 6), (2, 5, kv_heads, 3 * 2))
    segments = jnp.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]])
    mixed = jax.jit(masked_attention)(query, key, value, causal_mask(segments))
    for row in range(2):
        for head in range(4):
            shared = head // (4 // kv_heads)
            scores = np.asarray(query[row, :, head] @ key[row, :, shared].T) / np.sqrt(6)
            scores[~np.asarray(causal_mask(segments))[row]] = -np.inf
            shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(mixed[row, :, head], shares @ value[row, :, shared], atol=2e-6)


def test_softmax_has_the_derivatives_of_the_plain_form() -> None:
    def plain(x: jax.Array) -> jax.Array:
        return jnp.exp(x) / jnp.sum(jnp.exp(x), axis=-1, keepdims=True)

    x, tangent, weight = draws((3, 7), (3, 7), (3, 7))

    def results(function) -> list:
        def scalar(x: jax.Array) -> jax.Array:
            return jnp.sum(weight * function(x) ** 2)

        return [
            function(x),
            jax.grad(scalar)(x),
            jax.jvp(function, (x,), (tangent,))[1],
            jax.jvp(jax.grad(scalar), (x,), (tangent,))[1],
            jax.grad(lambda x: jnp.vdot(jax.grad(scalar)(x), tangent))(x),
            jax.vmap(jax.grad(scalar))(jnp.stack([x, 2 * x])),
        ]

    ours_and_plain = jax.jit(lambda: (results(softmax), results(plain)))()
    for ours, expected in zip(*ours_and_plain, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_softmax_stands_large_scores() -> None:
    np.testing.assert_allclose(softmax(jnp.array([[1e5, 1e5, -1e5]])), [[0.5, 0.5, 0.0]])


def test_positions_restart_with_each_segment() -> None:
    segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 4]]
    np.testing.assert_array_equal(segment_positions(segments), expected)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key = draws((1, 1, 1, 8), (1, 1, 1, 8))

    @jax.jit
    def product(query_at: int, key_at: int) -> jax.Array:
        turned = [
            rotate(x, rotation(jnp.asarray(at)[None, None], 8, 100.0))
            for x, at in ((query, query_at), (key, key_at))
        ]
        return jnp.vdot(*turned)

    np.testing.assert_allclose(product(3, 1), product(13, 11), rtol=1e-5)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    np.testing.assert_allclose(product(5, 5), jnp.vdot(query, key), rtol=1e-5)


def test_scaling_stretches_slow_rotations_alone() -> None:
    scaling = RopeScaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_positions=64
    )
    plain, stretched = (
        # Angles at position 1 are the frequencies themselves, all below pi.
        np.arctan2(turn.sine, turn.cosine)[0, 0]
        for turn in (rotation(jnp.array([[1]]), 32, 1e4, with_) for with_ in (None, scaling))
    )
    turns = 64 * plain / (2 * np.pi)
    fast, slow = turns > 4, turns < 1
    assert np.any(fast)
    assert np.any(slow)
    np.testing.assert_allclose(stretched[fast], plain[fast], rtol=1e-5)
    np.testing.assert_allclose(stretched[slow], plain[slow] / 8, rtol=1e-5)
    between = ~fast & ~slow
    assert np.any(between)
    assert np.all((plain / 8 < stretched)[between] & (stretched < plain)[between])


def test_unknown_attention_names_the_known() -> None:
    with pytest.raises(ModelError, match="unknown attention 'flashy': choose one of blockwise, exact, fused"):
        self_attention("flashy", jnp.ones((1, 2), jnp.int32))
