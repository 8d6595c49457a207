"""What a run's states, records and programs weigh, by their shapes and by XLA's own account; nothing is run."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.core.optimizer_step import smooth_part
from bilevel.core.problem import Batch
from bilevel.core.tree import PyTree
from bilevel.core.unroll.plan import Footprint
from bilevel.core.unroll.segments import Pulled
from bilevel.core.unroll.training_run import RunPrograms, TrainingRun, settled

_SHORT = 2
"""Steps of the segment whose programs are compiled to learn what any length takes: one step has no loop."""


def footprint(programs: RunPrograms, outer: PyTree, run: TrainingRun, queries: int = 1) -> Footprint:
    """What a plan for a run moves around, in bytes on one device.

    Args:
        programs: of the run's problem; two short ones are compiled.
        outer: outer variables.
        run: the run, of at least one step.
        queries: upper losses that are pulled back at once.
    """
    steps = min(_SHORT, run.steps)
    batches, start = run.batches(0, steps), settled(run.start)
    recorded, below = compiled(programs, outer, run, steps, queries)
    kept = record_shapes(programs, outer, run, batches).steps
    return Footprint(
        state=bytes_of(start),
        # By the shards of the start, which records have, too, and their shapes do not tell.
        record=bytes_of((start, start.iterate.inner)) + bytes_of((kept.weights, kept.losses)) // steps,
        batch=bytes_of(batches) // steps,
        cotangent=queries * bytes_of((outer, smooth_part(start.iterate))),
        outer=bytes_of(outer),
        recording=recorded.temp_size_in_bytes,
        pulling=below.temp_size_in_bytes,
    )


def compiled(
    programs: RunPrograms, outer: PyTree, run: TrainingRun, steps: int, queries: int = 1
) -> tuple[Any, Any]:
    """XLA's memory analyses of recording and of pulling back a segment of so many steps."""
    batches, start = run.batches(0, steps), settled(run.start)
    taken = programs.record.lower(outer, start, batches, jnp.int32(0)).compile()
    records = record_shapes(programs, outer, run, batches).steps
    pulled = Pulled(outer, smooth_part(start.iterate))
    if programs.queries:
        pulled = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((queries, *jnp.shape(leaf)), jnp.result_type(leaf)), pulled
        )
    below = programs.pull_back.lower(outer, records, batches, pulled).compile()
    return taken.memory_analysis(), below.memory_analysis()


def record_shapes(programs: RunPrograms, outer: PyTree, run: TrainingRun, batches: Batch) -> Any:
    """Shapes of what recording these batches from the run's start leaves."""
    return jax.eval_shape(
        lambda start: programs.record(outer, start, batches, jnp.int32(0)), settled(run.start)
    )


def bytes_of(tree: PyTree) -> int:
    """Bytes that the arrays of a tree take on one device."""

    def leaf_bytes(leaf: Any) -> int:
        dtype = jnp.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            return int(np.asarray(jax.random.key_data(leaf)).nbytes)
        sharding = getattr(leaf, "sharding", None)
        shape = jnp.shape(leaf) if sharding is None else sharding.shard_shape(jnp.shape(leaf))
        return int(prod(shape)) * dtype.itemsize

    return sum(map(leaf_bytes, jax.tree.leaves(tree)))
