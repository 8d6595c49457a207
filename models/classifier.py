"""A small classifier of vectors as pure functions on a dict: for rows that are no text."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Params = dict[str, Array]


def init(key: Key[Array, ""], inputs: int, classes: int, width: int = 32) -> Params:
    """Random parameters of a classifier with one hidden layer, or of softmax regression.

    Args:
        key: draws them.
        inputs: length of a vector.
        classes: how many there are.
        width: hidden units; 0 for softmax regression.

    Examples:
        >>> sorted(init(jax.random.key(0), inputs=4, classes=3, width=0))
        ['bias_0', 'kernel_0']
    """
    sizes = (inputs, width, classes) if width else (inputs, classes)
    params: Params = {}
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        kernel = jax.random.normal(jax.random.fold_in(key, number), (fan_in, fan_out)) / fan_in**0.5
        params |= {f"kernel_{number}": kernel, f"bias_{number}": jnp.zeros(fan_out)}
    return params


def logits(params: Params, x: Float[Array, "rows inputs"]) -> Float[Array, "rows classes"]:
    """Unnormalised log-probabilities of the classes.

    Examples:
        >>> logits(init(jax.random.key(0), inputs=4, classes=3), jnp.ones((2, 4))).shape
        (2, 3)
    """
    layers = len(params) // 2
    for number in range(layers):
        x = x @ params[f"kernel_{number}"] + params[f"bias_{number}"]
        x = jnp.tanh(x) if number < layers - 1 else x
    return x
