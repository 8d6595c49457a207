"""Fingerprints of what a run starts from besides its rows, so that it is never continued with another model or loss."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_SEEDS = (0x243F6A88, 0x85A308D3)


def fingerprint_tree(tree: Any) -> str:
    """A fingerprint of a tree of arrays: paths, shapes, types and every bit of their values.

    Values are summed up where they are, device by device, in integers whose sums know no order; nothing is
    gathered, and the fingerprint does not depend on how the arrays are split.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(jax.jit(_sums)([leaf for _, leaf in leaves]))
    lines = [
        f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {jnp.result_type(leaf)} {' '.join(map(str, numbers))}"
        for (path, leaf), numbers in zip(leaves, sums, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def fingerprint_source(function: Callable[..., Any]) -> str:
    """A fingerprint of the file that a function is written in; of its class where there is none."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        file = None
    code = repr(function.__class__).encode() if file is None else Path(file).read_bytes()
    return hashlib.sha256(code).hexdigest()[:16]


def _sums(leaves: list[Array]) -> list[list[Array]]:
    return [[jnp.sum(_mixed(_words(leaf), seed), dtype=jnp.uint32) for seed in _SEEDS] for leaf in leaves]


def _words(values: Array) -> Array:
    """The bits of an array as unsigned integers of 32 bits; 64-bit values get an axis of two words."""
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
