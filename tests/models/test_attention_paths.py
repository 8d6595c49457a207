"""Every path against the exact one, in every derivative that it has."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import DecoderConfig, ModelError
from models.attention import blockwise, exact
from models.attention.fused import KERNELS, cudnn, has_kernel, splash

CONFIG = DecoderConfig(vocab_size=17, width=16, layers=2, heads=4, kv_heads=2, mlp_width=20)
PARAMS = models.init(CONFIG, jax.random.key(0))
DIRECTION = models.init(CONFIG, jax.random.key(2))
TOKENS = jax.random.randint(jax.random.key(1), (4, 9), 0, CONFIG.vocab_size)
SEGMENTS = jnp.array([[1] * 9, [1] * 5 + [0] * 4, [1] * 3 + [2] * 4 + [0] * 2, [0] * 9])
BATCH = {"tokens": TOKENS, "segments": SEGMENTS}


def inputs(kv_heads: int = 2, positions: int = 9) -> tuple[jax.Array, ...]:
    shapes = [(4, positions, 4, 6), (4, positions, kv_heads, 6), (4, positions, kv_heads, 6)]
    keys = jax.random.split(jax.random.key(7), 3)
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


def results(path, qkv: tuple) -> tuple:
    """The mixed values and every derivative: gradient, jvp, both second orders, and under vmap."""
    direction = jax.tree.map(jnp.cos, qkv)

    def value(qkv: tuple) -> jax.Array:
        return jnp.sum(jnp.sin(path(*qkv)))

    def along(qkv: tuple) -> jax.Array:
        return jax.jvp(value, (qkv,), (direction,))[1]

    return (
        path(*qkv),
        jax.jvp(jax.grad(value), (qkv,), (direction,)),
        jax.value_and_grad(along)(qkv),
        jax.vmap(jax.grad(value))(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), qkv)),
    )


@pytest.mark.parametrize(("block", "window", "kv_heads"), [(3, None, 2), (4, 2, 1), (256, 5, 4)])
def test_blockwise_equals_exact_in_every_derivative(block: int, window: int | None, kv_heads: int) -> None:
    @jax.jit
    def both(qkv: tuple) -> tuple:
        paths = blockwise(SEGMENTS, window, block), exact(SEGMENTS, window)
        return tuple(results(path, qkv) for path in paths)

    ours, expected = both(inputs(kv_heads))
    chex.assert_trees_all_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_blockwise_never_holds_all_scores() -> None:
    segments = jnp.ones((1, 256), jnp.int32)
    qkv = tuple(x[:1] for x in inputs(positions=256))
    scores = 4 * 256 * 256 * 4

    def bytes_needed(path) -> list[int]:
        def value(qkv: tuple) -> jax.Array:
            return jnp.sum(jnp.sin(path(*qkv)))

        gradient = jax.grad(value)
        functions = (gradient, lambda qkv: jax.jvp(gradient, (qkv,), (qkv,))[1])
        return [jax.jit(f).lower(qkv).compile().memory_analysis().temp_size_in_bytes for f in functions]

    assert all(needed > 2 * scores for needed in bytes_needed(exact(segments)))
    assert all(needed < scores for needed in bytes_needed(blockwise(segments, None, 16)))


def test_the_decoder_takes_blocks() -> None:
    @partial(jax.jit, static_argnums=0)
    def curvature(attention: str) -> tuple:
        def loss(params: dict) -> jax.Array:
            return jnp.sum(models.token_scores(params, BATCH, CONFIG, attention=attention).loss)

        return jax.jvp(jax.grad(loss), (PARAMS,), (DIRECTION,))

    chex.assert_trees_all_close(curvature("blockwise"), curvature("exact"), atol=1e-4, rtol=1e-4)


@pytest.fixture
def kernel_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a kernel on this device, so that what surrounds kernels can be seen."""
    monkeypatch.setitem(KERNELS, jax.default_backend(), exact)


def loss(params: dict, attention: str = "fused") -> jax.Array:
    return jnp.sum(models.token_scores(params, BATCH, CONFIG, attention=attention).loss)


@pytest.mark.usefixtures("kernel_here")
def test_fused_has_values_and_gradients() -> None:
    stacked = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), PARAMS)

    @partial(jax.jit, static_argnums=0)
    def both(attention: str) -> tuple:
        function = partial(loss, attention=attention)
        return jax.value_and_grad(function)(PARAMS), jax.vmap(jax.grad(function))(stacked)

    chex.assert_trees_all_close(both("fused"), both("exact"), atol=1e-5, rtol=1e-5)


FORWARD = {
    "jvp": lambda params: jax.jvp(loss, (params,), (DIRECTION,)),
    "jvp of a gradient": lambda params: jax.jvp(jax.grad(loss), (params,), (DIRECTION,)),
    "gradient of a jvp": jax.grad(lambda params: jax.jvp(loss, (params,), (DIRECTION,))[1]),
    "jvp under vmap": lambda params: jax.vmap(lambda x: jax.jvp(loss, (params,), (x,))[1])(
        jax.tree.map(lambda x: x[None], DIRECTION)
    ),
}


@pytest.mark.usefixtures("kernel_here")
@pytest.mark.parametrize("name", FORWARD)
def test_a_forward_derivative_of_fused_names_the_remedy(name: str) -> None:
    function = FORWARD[name]
    # Shapes are known before anything is compiled.
    jax.eval_shape(function, PARAMS)
    with pytest.raises(ModelError, match="use attention='blockwise' or 'exact' in the function"):
        jax.jit(function).lower(PARAMS)


@pytest.mark.usefixtures("kernel_here")
def test_a_forward_derivative_of_fused_is_refused_outside_jit() -> None:
    with pytest.raises(ModelError, match="attention 'fused' has no forward-mode derivative"):
        FORWARD["jvp"](PARAMS)


@pytest.mark.parametrize(
    ("device", "head_dim", "dtype", "devices", "serves"),
    [
        ("gpu", 64, jnp.bfloat16, 8, True),
        ("gpu", 64, jnp.float32, 1, False),
        ("gpu", 256, jnp.bfloat16, 1, False),
        ("gpu", 12, jnp.bfloat16, 1, False),
        ("tpu", 256, jnp.float32, 1, True),
        ("tpu", 64, jnp.bfloat16, 4, False),
        ("cpu", 64, jnp.bfloat16, 1, False),
    ],
)
def test_kernels_say_what_they_serve(
    device: str, head_dim: int, dtype: type, devices: int, serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    assert has_kernel(head_dim, dtype, devices) == serves


def test_fused_needs_a_device_with_a_kernel() -> None:
    with pytest.raises(ModelError, match="needs an NVIDIA GPU or a TPU, this is cpu: use attention='exact'"):
        models.hidden(PARAMS, TOKENS, SEGMENTS, CONFIG, attention="fused")


def test_cudnn_names_what_it_does_not_take() -> None:
    with pytest.raises(ModelError, match="computes in bfloat16 on a GPU, not float32: read the model in bf"):
        cudnn(SEGMENTS)(*inputs())
    with pytest.raises(ModelError, match=r"head_dim of 8, 16, ... 128 on a GPU, not 6"):
        cudnn(SEGMENTS)(*(x.astype(jnp.bfloat16) for x in inputs()))


@pytest.mark.parametrize("window", [None, 3])
def test_splash_equals_exact(window: int | None) -> None:
    qkv = tuple(x[2:3] for x in inputs())
    segments = SEGMENTS[2:3]

    def both(path) -> tuple:
        value = lambda qkv: jnp.sum(jnp.sin(path(*qkv)))  # noqa: E731
        return path(*qkv), jax.grad(value)(qkv)

    ours, expected = both(splash(segments, window, interpret=True)), both(exact(segments, window))
    np.testing.assert_allclose(ours[0], expected[0], atol=1e-5)
    chex.assert_trees_all_close(ours[1], expected[1], atol=1e-5)


@pytest.mark.gpu
def test_fused_on_a_gpu_equals_exact() -> None:
    config = DecoderConfig(vocab_size=17, width=64, layers=2, heads=4, kv_heads=2, mlp_width=20)
    params = models.init(config, jax.random.key(0), jnp.bfloat16)
    batch = {name: jnp.tile(array, (1, 8))[:, :63] for name, array in BATCH.items()}

    @partial(jax.jit, static_argnums=0)
    def value_and_gradient(attention: str) -> tuple:
        return jax.value_and_grad(
            lambda params: jnp.mean(models.token_scores(params, batch, config, attention=attention).loss)
        )(params)

    chex.assert_trees_all_close(value_and_gradient("fused"), value_and_gradient("exact"), atol=2e-2)
