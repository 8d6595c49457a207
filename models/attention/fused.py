"""Attention in one kernel: cuDNN on NVIDIA GPUs, splash on TPUs. First-order passes only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Int

from models.attention.exact import Attend, Keys, Queries, causal_mask
from models.attention.reverse_only import reverse_only
from models.errors import ModelError

_LANES = 128
"""Splash wants lengths and head sizes in multiples of this."""


def fused(segments: Int[Array, "sequences positions"], window: int | None = None) -> Attend:
    """Attention in the fastest kernel that the device has; reverse mode is its only derivative.

    Raises:
        ModelError: where the device has no kernel.
    """
    device = jax.default_backend()
    if device not in KERNELS:
        raise ModelError(
            f"attention 'fused' needs an NVIDIA GPU or a TPU, this is {device}: use attention='exact' or 'blockwise'"
        )
    attend = KERNELS[device](segments, window)
    return lambda query, key, value: attend(reverse_only(query), reverse_only(key), reverse_only(value))


def has_kernel(head_dim: int, dtype: DTypeLike, devices: int = 1) -> bool:
    """Whether `fused` would run.

    Args:
        head_dim: size of one head.
        dtype: what the model computes in.
        devices: how many share a batch by `jax.jit` alone.
    """
    device = jax.default_backend()
    if device == "gpu":
        return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128
    # XLA does not split splash's kernel over devices by itself.
    return device in KERNELS and (device != "tpu" or devices == 1)


def cudnn(segments: Int[Array, "sequences positions"], window: int | None = None) -> Attend:
    """Flash attention of cuDNN, whose mask is an array that all layers share."""
    positions = segments.shape[1]
    # Under a mask its backward pass takes even lengths alone.
    length = positions + positions % 2
    ids = jnp.pad(segments, ((0, 0), (0, length - positions)), constant_values=-1)
    mask = causal_mask(ids, window)[:, None]

    def attend(query: Queries, key: Keys, value: Keys) -> Queries:
        if query.dtype not in (jnp.bfloat16, jnp.float16):
            raise ModelError(
                f"attention 'fused' computes in bfloat16 on a GPU, not {query.dtype}: read the model in bfloat16, or "
                "use attention='exact' or 'blockwise'"
            )
        if query.shape[-1] % 8 or query.shape[-1] > 128:
            raise ModelError(
                f"attention 'fused' takes a head_dim of 8, 16, ... 128 on a GPU, not {query.shape[-1]}: "
                "use attention='exact' or 'blockwise'"
            )
        room = ((0, 0), (0, length - positions), (0, 0), (0, 0))
        query, key, value = (jnp.pad(x, room) for x in (query, key, value))
        mixed = jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=True, implementation="cudnn"
        )
        return mixed[:, :positions]

    return attend


def splash(
    segments: Int[Array, "sequences positions"], window: int | None = None, *, interpret: bool = False
) -> Attend:
    """Splash attention of JAX, which passes over blocks that its mask or the window leaves empty."""
    # Imported here: it brings in the kernel language, which other devices do without.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    positions = segments.shape[1]
    length = -(-positions // _LANES) * _LANES
    ids = jnp.pad(segments, ((0, 0), (0, length - positions)), constant_values=-1)

    def attend(query: Queries, key: Keys, value: Keys) -> Queries:
        sequences, _, heads, head_dim = query.shape
        kv_heads = key.shape[2]
        room = ((0, 0), (0, length - positions), (0, 0), (0, -head_dim % _LANES))
        queries, keys, values = (
            jnp.moveaxis(jnp.pad(x, room), 2, 1) for x in (query * head_dim**-0.5, key, value)
        )
        grouped = queries.reshape(sequences, kv_heads, heads // kv_heads, *queries.shape[2:])
        shape = (length, length)
        mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
        kernel = kernels.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * (heads // kv_heads)), interpret=interpret
        )

        def sequence(query: Array, key: Array, value: Array, ids: Array) -> Array:
            segment_ids = kernels.SegmentIds(ids, ids)
            return jax.vmap(lambda *qkv: kernel(*qkv, segment_ids=segment_ids))(query, key, value)

        mixed = jax.vmap(sequence)(grouped, keys, values, ids)
        mixed = mixed.reshape(sequences, heads, length, -1)[:, :, :positions, :head_dim]
        return jnp.moveaxis(mixed, 1, 2).astype(value.dtype)

    return attend


KERNELS: dict[str, Callable[[Int[Array, "sequences positions"], int | None], Attend]] = {
    "gpu": cudnn,
    "tpu": splash,
}
"""By the name that JAX gives the kind of device."""
