"""Sums over every bit of arrays: whether two trees are the same to the last bit, without gathering either."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from bilevel.core.tree import PyTree

_SEEDS = (0x243F6A88, 0x85A308D3)


def bit_sums(tree: PyTree) -> UInt32[Array, "leaves 2"]:
    """Two sums of 32 bits for each leaf, in integers whose sums know no order.

    They are the same however arrays are split over devices, and differ, but for chance, where a bit does or two words
    have changed places. Shapes and types are not in them.
    """
    sums = [
        jnp.stack([jnp.sum(_mixed(_words(leaf), seed), dtype=jnp.uint32) for seed in _SEEDS])
        for leaf in jax.tree.leaves(tree)
    ]
    return jnp.stack(sums) if sums else jnp.zeros((0, 2), jnp.uint32)


def _words(leaf: Array) -> Array:
    """The bits of an array as unsigned integers of 32 bits; 64-bit values get an axis of two words."""
    values = jnp.asarray(leaf)
    if jax.dtypes.issubdtype(values.dtype, jax.dtypes.prng_key):
        values = jax.random.key_data(values)
    if values.dtype == bool:
        return values.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(values.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(values, unsigned).astype(jnp.uint32)


def _mixed(words: Array, seed: int) -> Array:
    """Scrambles each word together with its position (the finaliser of MurmurHash3)."""
    mixed = jnp.full(words.shape, seed, jnp.uint32)
    for axis in range(words.ndim):
        mixed = mixed * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = words ^ (mixed * jnp.uint32(0x85EBCA77))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return mixed ^ (mixed >> 16)
