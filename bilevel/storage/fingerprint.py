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

from bilevel.core.bits import bit_sums


def fingerprint_tree(tree: Any) -> str:
    """A fingerprint of a tree of arrays: paths, shapes, types and every bit of their values.

    Values are summed up where they are, device by device, in integers whose sums know no order; nothing is
    gathered, and the fingerprint does not depend on how the arrays are split.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sums = jax.device_get(jax.jit(bit_sums)([leaf for _, leaf in leaves]))
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
