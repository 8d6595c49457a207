"""One declaration a tensor; initial values, abstract shapes and logical axes are all read off it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray, PyTree

Params = dict[str, Any]
"""Nested dicts of arrays."""


class Tensor(NamedTuple):
    """Declares one parameter: its shape, a logical name for each axis, and how fresh values are drawn."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    initializer: Callable[..., Array]


Declaration = dict[str, Any]
"""Nested dicts of `Tensor`."""


def initial_values(
    declaration: Declaration, key: PRNGKeyArray | Array, dtype: DTypeLike = jnp.float32
) -> Params:
    """Draws fresh parameters, each tensor from a key of its own.

    Args:
        declaration: nested dicts of `Tensor`.
        key: a PRNG key.
        dtype: type of every parameter; values are drawn in float32 and then cast, so that types agree on them.

    Returns:
        Nested dicts of arrays, shaped as declared.
    """
    tensors, structure = jax.tree.flatten(declaration, is_leaf=_is_tensor)
    keys = jax.random.split(key, len(tensors))
    draws = [
        tensor.initializer(k, tensor.shape, jnp.float32) for tensor, k in zip(tensors, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, [draw.astype(dtype) for draw in draws])


def abstract_values(declaration: Declaration, dtype: DTypeLike = jnp.float32) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes and types without memory, for planning and lowering.

    Examples:
        >>> from models import declare, small
        >>> abstract_values(declare(small(13, 8, heads=2)), "bfloat16")["embedding"]["table"].shape
        (13, 8)
    """
    return map_tensors(lambda tensor: jax.ShapeDtypeStruct(tensor.shape, jnp.dtype(dtype)), declaration)


def logical_axes(declaration: Declaration) -> PyTree:
    """The tuple of logical axis names of every parameter, in the same nesting (tuples are the leaves).

    Examples:
        >>> from models import declare, small
        >>> logical_axes(declare(small(13, 8, heads=2)))["layers"]["mlp"]["up"]
        {'kernel': ('layers', 'width', 'mlp')}
    """
    return map_tensors(lambda tensor: tensor.axes, declaration)


def stacked(declaration: Declaration, layers: int) -> Declaration:
    """Declares `layers` equal layers, their tensors stacked on a leading axis named "layers"."""

    def stack(tensor: Tensor) -> Tensor:
        return Tensor((layers, *tensor.shape), ("layers", *tensor.axes), tensor.initializer)

    return map_tensors(stack, declaration)


def map_tensors(function: Callable[[Tensor], Any], declaration: Declaration) -> Any:
    """Whatever the function makes of each declared tensor, in the same nesting."""
    return jax.tree.map(function, declaration, is_leaf=_is_tensor)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, Tensor)
