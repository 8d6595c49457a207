"""What a training step needs: the program that a run would compile, for arrays that have shapes and no contents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bilevel.core.problem import Batch
from bilevel.core.solver import BOTH, Solver, SolverState
from bilevel.core.tree import PyTree
from bilevel.errors import InputError
from bilevel.layout import Layout
from bilevel.schedule import BatchPlan
from bilevel.schedule.programs import step_program

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class StepPlan(NamedTuple):
    """A training step that can be lowered; every array is a shape with a place.

    Attributes:
        solver_of: from what the model's functions hold besides (`frozen`) to the solver.
        frozen: the frozen parameters under an adapter; None for nothing.
        state: the solver's state.
        lower_batches: the lower batches of a step.
        upper_batches: its upper batch.
        layout: the devices.
    """

    solver_of: Callable[[PyTree], Solver]
    frozen: PyTree
    state: SolverState
    lower_batches: Batch
    upper_batches: Batch
    layout: Layout

    def lower(self) -> jax.stages.Lowered:
        """The step's program before compilation, as `Train` runs it."""
        places = self.layout.shardings(self.state)

        def step(frozen: PyTree, state: SolverState, *batches: Batch) -> Any:
            # What a run closes over has contents there; here it is handed in.
            program = step_program(self.solver_of(frozen), self.state, self.layout)
            return program(state, *batches, updates=BOTH)

        # A program inside another donates nothing and places nothing: the outer one says it again.
        outer = jax.jit(step, donate_argnums=1, out_shardings=(places, None))
        return outer.lower(self.frozen, self.state, self.lower_batches, self.upper_batches)


def plan_step(
    solver_of: Callable[[PyTree], Solver],
    params: PyTree,
    row: Shapes,
    plan: BatchPlan,
    *,
    sizes: Mapping[str, int],
    layout: Layout,
    frozen: PyTree = None,
) -> StepPlan:
    """Plans a step of a solver.

    Args:
        solver_of: from what the model's functions hold besides to the solver.
        params: shapes of what is trained, placed or not.
        row: shapes of the columns of one row, `row_id` left out.
        plan: how batches are cut. Every row stands alone: packing saves nothing.
        sizes: how many rows there are, by index name.
        layout: the devices.
        frozen: shapes of the frozen parameters, placed.

    Raises:
        InputError: batches that the devices cannot share.
    """
    key = jax.random.key(0)
    state = jax.eval_shape(lambda params: solver_of(frozen).init(key, params, sizes), params)
    columns = {**row, "row_id": jax.ShapeDtypeStruct((), jnp.int32)}
    lower = _batch(columns, (plan.lower_steps, plan.accumulate), plan.rows, layout)
    upper = _batch(columns, (plan.accumulate,), plan.upper_rows or plan.rows, layout)
    return StepPlan(solver_of, frozen, _placed_like(state, params, layout), lower, upper, layout)


def placed(shapes: PyTree, places: PyTree) -> PyTree:
    """Shapes with a place each.

    Args:
        shapes: the arrays' shapes.
        places: a sharding for each, or one for all.
    """
    if isinstance(places, NamedSharding):
        places = jax.tree.map(lambda _: places, shapes)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def gibibytes(tree: PyTree) -> float:
    """What one device holds of arrays, in GiB."""

    def size(x: Any) -> int:
        held = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
        # Keys have no size of their own type; they are a few bytes.
        return 0 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else math.prod(held) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree))) / 2**30


def _batch(columns: Shapes, leading: tuple[int, ...], rows: int, layout: Layout) -> dict[str, Any]:
    rows //= leading[-1]
    if rows % layout.shares:
        raise InputError(
            f"micro-batches of {rows} rows cannot be divided over {layout.shares} devices: use larger batches, or a "
            "smaller --accumulate"
        )
    split = NamedSharding(layout.mesh, PartitionSpec(*[None] * len(leading), layout.batch_axes))
    shapes = {
        name: jax.ShapeDtypeStruct((*leading, rows, *column.shape), column.dtype)
        for name, column in columns.items()
    }
    return placed(shapes, split)


def _placed_like(state: PyTree, params: PyTree, layout: Layout) -> PyTree:
    """The state's shapes, every tree in it that is shaped like the parameters placed as they are."""
    structure: Any = jax.tree.structure(params)
    places = layout.shardings(params)

    def is_like(node: Any) -> bool:
        return bool(jax.tree.structure(node) == structure)

    def place(node: Any) -> Any:
        return placed(node, places if is_like(node) else layout.whole)

    return jax.tree.map(place, state, is_leaf=is_like)
