"""Small problems with known answers, shared by the tests of the core."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bilevel.core import RowLosses, RowProblem
from bilevel.core.hypergradient import Iterate, Levels, Point
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import LookBack
from bilevel.weighting import row_logits


def network(key: jax.Array, features: int = 3, width: int = 4, dtype=jnp.float32) -> dict:
    """A one-hidden-layer network in a nested dict; one row of `unused` never gets a gradient."""
    first, second, third = jax.random.split(key, 3)
    return {
        "first": {"kernel": jax.random.normal(first, (features, width), dtype) / features**0.5},
        "second": {"kernel": jax.random.normal(second, (width,), dtype)},
        "unused": jax.random.normal(third, (2,), dtype),
    }


def predict(params: dict, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["first"]["kernel"]) @ params["second"]["kernel"] + params["unused"][0]


def row_losses(params: dict, batch: dict) -> RowLosses:
    """Squared errors; a row of count c stands for c equal tokens."""
    error = predict(params, batch["x"]) - batch["y"]
    return RowLosses(0.5 * error**2 * batch["count"], batch["count"])


def upper(outer, params: dict, batch: dict):
    return row_losses(params, batch).weighted()


def rows(seed: int, size: int, pool: int | None = None, features: int = 3, dtype=np.float32) -> dict:
    """A batch of random rows with ragged counts; with `pool`, ids are drawn from that many rows."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(pool or size)[:size]
    return {
        "x": rng.normal(size=(size, features)).astype(dtype),
        "y": rng.normal(size=size).astype(dtype),
        "count": rng.integers(1, 5, size=size).astype(dtype),
        "row_id": ids.astype(np.int32),
    }


def in_micro_batches(batch: dict, pieces: int) -> dict:
    return {name: value.reshape(pieces, -1, *value.shape[1:]) for name, value in batch.items()}


def row_problem(pool: int, **options) -> RowProblem:
    weighting = options.pop("weighting", None) or row_logits()
    return RowProblem(row_losses, weighting, upper, **options)


def point_of(problem, outer, params: dict, batch: dict, pieces: int = 1) -> tuple[Levels, Point]:
    """A point at which what the implicit rules read is filled in: its iterates are all the same."""
    level = lower_level(problem)
    batches = in_micro_batches(batch, pieces)
    iterate = Iterate(params, ())
    return Levels(level, problem.upper, optax.sgd(0.1)), Point(
        outer=outer,
        memory=(),
        start=iterate,
        last=iterate,
        end=iterate,
        gradient=(),
        weighed=level.weigh(outer, (), params, batches),
        lower_batches={name: value[None] for name, value in batches.items()},
        upper_batches={},
        key=jax.random.key(0),
        step=0,
        look_back=LookBack(1, iterate, (), None),
    )


def slope_at_zero(function, step: float = 1e-4):
    """The derivative of a function of one number at 0, to fourth order.

    Two central differences, extrapolated, allow a step so large that rounding costs 1e-12 of the values.
    """
    near, far = (function(by) - function(-by) for by in (step, 2 * step))
    return (8 * near - far) / (12 * step)


def finite_difference(function, tree):
    """The derivative of a scalar function in every entry of a tree of float64 arrays, all in one batch."""
    flat, unravel = ravel_pytree(tree)
    moves = jnp.eye(flat.size, dtype=flat.dtype)
    values = jax.jit(jax.vmap(lambda vector: function(unravel(vector))))
    return unravel(slope_at_zero(lambda by: values(flat + by * moves)))


def relative_error(found, reference) -> float:
    found, reference = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, reference))
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
