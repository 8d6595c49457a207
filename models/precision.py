"""The type in which sums, norms and softmaxes are accumulated, whatever the parameters are stored in."""

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Float32, or float64 for float64 parameters, so that derivatives can be checked to full precision."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The array in its accumulation type."""
    return x.astype(accumulation_dtype(x.dtype))
