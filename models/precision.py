"""Types: what a model computes in, and what sums, norms and softmaxes are accumulated in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from models.parameters import Params


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Float32, or float64 for float64 parameters, so that derivatives can be checked to full precision."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The array in its accumulation type."""
    return x.astype(accumulation_dtype(x.dtype))


def cast(params: Params, dtype: DTypeLike) -> Params:
    """The parameters in the type to compute in.

    Every function of a model computes in its parameters' type. Cast inside the loss, float32 parameters stay what
    the optimizer moves, the matrix products run in bfloat16, and gradients come back in float32.

    Examples:
        >>> jax.grad(lambda params: cast(params, "bfloat16")["x"].sum())({"x": jnp.ones(2)})
        {'x': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda x: x.astype(dtype), params)
