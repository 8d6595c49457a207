"""What a preset needs: compiles its training step for arrays without contents, and says how many bytes it takes.

python -m experiments.memory --preset llama3_8b --devices 8
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import models
from bilevel.core.solver import Solver
from bilevel.errors import InputError
from bilevel.layout.devices import AXIS, data_mesh
from bilevel.methods import bds
from bilevel.objectives import mean_loss, response_losses
from bilevel.schedule import Schedule, Train
from experiments.bds_config import BDSAlpaca, presets_for
from experiments.command import run_command
from experiments.tuned_model import TunedModel, begin_adapter, compute_of, find_model, random_config
from models import DecoderConfig, RopeScaling

NAME = "memory"
ARCHITECTURES = {
    "meta-llama/Llama-3.2-1B": DecoderConfig(
        vocab_size=128256,
        width=2048,
        layers=16,
        heads=32,
        kv_heads=8,
        mlp_width=8192,
        max_positions=131072,
        rope_theta=5e5,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": DecoderConfig(
        vocab_size=128256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        mlp_width=14336,
        max_positions=8192,
        rope_theta=5e5,
        tied_embeddings=False,
    ),
}
"""What the presets' models look like, so that nothing needs to be downloaded to plan for them."""


@dataclass(frozen=True)
class Memory:
    """Says what one training step takes on each device, without the model's weights and without the devices.

    The step is compiled for arrays that have shapes but no contents: for the devices of this machine, for as many
    simulated ones, or for a TPU that is elsewhere. The CPU's compiler keeps float32 copies of bfloat16 parameters: the
    presets' steps need less than half as much on a TPU (4.0 GiB against 9.2, 4.6 against 12.3 on each of 8). Every row
    is taken to be as long as --max-length, so that packing saves nothing.

    Attributes:
        devices: Simulate so many devices on the CPU.
        topology: A TPU to compile for, such as v5e:2x4; needs the package libtpu, and minutes.
        rows: Training rows: each has one logit.
        run: The run that is planned for.
    """

    devices: int | None = None
    topology: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    rows: int = 50_000
    run: Annotated[BDSAlpaca, tyro.conf.arg(name="")] = field(default_factory=BDSAlpaca)


class Plan(NamedTuple):
    """A training step that can be lowered: function, abstract arguments and where results go."""

    step: Any
    arguments: tuple[Any, ...]

    def lower(self) -> jax.stages.Lowered:
        """Returns the step's program; needs no weights."""
        state = jax.tree.map(lambda x: x.sharding, self.arguments[1])
        # The state goes back to where it was; the second copy of an adapter must not be spread by chance.
        return jax.jit(self.step, donate_argnums=1, out_shardings=(state, None)).lower(*self.arguments)


def plan_step(run: BDSAlpaca, config: DecoderConfig, mesh: Mesh, rows: int) -> Plan:
    """Returns one BDS step of a run, for arrays without contents.

    Args:
        run: the run's configuration.
        config: the model's architecture.
        mesh: the devices.
        rows: training rows.

    Raises:
        InputError, ModelError: sizes that do not fit each other or the mesh.
    """
    begun = begin_adapter(run.lora, config, run.seed)
    compute = compute_of(run.model, config, run.data.max_length, mesh.shape[AXIS])
    places = models.shardings(config, mesh, {"width": AXIS}) if run.model.shard else None
    whole = NamedSharding(mesh, PartitionSpec())

    def place(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    def parameters(dtype: str) -> Any:
        shapes = models.abstract_values(models.declare(config), dtype)
        return jax.tree.map(place, shapes, places or jax.tree.map(lambda _: whole, shapes))

    def solver_of(base: Any) -> Solver:
        model = TunedModel(config, None, base, begun and begun[0])
        fast, safe = (
            response_losses(partial(model.token_scores, compute=compute, attention=attention))
            for attention in (compute.first_order, compute.forward)
        )
        _, schedule = bds(
            safe, mean_loss(fast), rows, run.training, run.bds, run.top_share, fast, run.hypergradient
        )
        return _solver_in(schedule)

    def step(base: Any, state: Any, lower: Any, upper: Any) -> Any:
        return solver_of(base).step(state, lower, upper)

    base = parameters(compute.dtype) if begun is not None else None
    inner = parameters("float32") if begun is None else begun[1]
    state = jax.eval_shape(solver_of(None).init, jax.random.key(0), inner)
    return Plan(step, (base, _placed_like(state, inner, whole), *_batches(run, mesh)))


def _placed_like(state: Any, inner: Any, whole: NamedSharding) -> Any:
    """The state's shapes, every tree in it that is shaped like the inner variables placed as they are."""
    structure: Any = jax.tree.structure(inner)

    def is_like(node: Any) -> bool:
        return bool(jax.tree.structure(node) == structure)

    def beside(x: Any, like: Any) -> jax.ShapeDtypeStruct:
        place = getattr(like, "sharding", None)
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=place if isinstance(place, NamedSharding) else whole
        )

    def place(node: Any) -> Any:
        if not is_like(node):
            return jax.ShapeDtypeStruct(node.shape, node.dtype, sharding=whole)
        return jax.tree.map(beside, node, inner)

    return jax.tree.map(place, state, is_leaf=is_like)


def _batches(run: BDSAlpaca, mesh: Mesh) -> tuple[Any, Any]:
    plan, length = run.training.plan, -(-run.data.max_length // 8) * 8

    def batch(leading: tuple[int, ...], rows: int) -> Any:
        rows = rows // plan.accumulate
        if rows % mesh.shape[AXIS]:
            raise InputError(
                f"micro-batches of {rows} rows cannot be divided over {mesh.shape[AXIS]} devices: use larger "
                "batches, or a smaller --accumulate"
            )
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * len(leading), AXIS))
        shapes = {
            "tokens": ((rows, length), jnp.int32),
            "segments": ((rows, length), jnp.int32),
            "loss_mask": ((rows, length), jnp.bool_),
            "row_id": ((rows,), jnp.int32),
        }
        return {
            name: jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=sharding)
            for name, (shape, dtype) in shapes.items()
        }

    lower = batch((plan.lower_steps, plan.accumulate), plan.rows)
    return lower, batch((plan.accumulate,), plan.upper_rows or plan.rows)


def _solver_in(schedule: Schedule) -> Solver:
    return next(
        move.solver
        for moves in schedule
        for move in moves
        if isinstance(move, Train) and "outer" in move.updates
    )


def run(memory: Memory) -> None:
    """Prints what the step needs."""
    mesh = _mesh(memory)
    config = _architecture(memory.run)
    plan = plan_step(memory.run, config, mesh, memory.rows)
    base, state, *_ = plan.arguments
    devices = f"{mesh.shape[AXIS]} x {mesh.devices.flat[0].device_kind}"
    print(f"{memory.run.preset} on {devices}, GiB on each device")
    if base is not None:
        print(f"  {_gib(base):8.2f}  {_count(base):,} frozen parameters, {memory.run.model.dtype}")
    print(f"  {_gib(state.inner.inner):8.2f}  {_count(state.inner.inner):,} trained parameters, float32")
    others = _gib(state) - _gib(state.inner.inner)
    print(f"  {others:8.2f}  optimizer states, other copies, row weights")
    print("compiling ...", file=sys.stderr)
    found: Any = plan.lower().compile().memory_analysis()
    print(
        f"  {found.temp_size_in_bytes / 2**30:8.2f}  temporary, in micro-batches of {_micro_batch(memory.run)}"
    )
    total = found.argument_size_in_bytes + found.temp_size_in_bytes
    print(f"  {total / 2**30:8.2f}  in all")


def _mesh(memory: Memory) -> Mesh:
    if memory.topology is not None:
        if memory.devices is not None:
            raise InputError("--devices simulates, and --topology names real ones: leave one out")
        jax.config.update("jax_platforms", "cpu")
        return _tpu(memory.topology)
    if memory.devices is not None:
        if memory.devices < 1:
            raise InputError(f"--devices {memory.devices}: give 1 or more")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", memory.devices)
    return data_mesh()


def _tpu(topology: str) -> Mesh:
    # One chip alone is no whole host of any kind.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone)
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise InputError(
            f"--topology {topology}: no such TPU, or no libtpu (pip install 'jax[tpu]'): {said}"
        ) from None
    return Mesh(found.devices, (AXIS,), axis_types=(AxisType.Auto,))


def _architecture(run: BDSAlpaca) -> DecoderConfig:
    known = ARCHITECTURES.get(str(run.model.model))
    if known is not None:
        return known
    found = find_model(run.model)
    return (
        found[1] if found is not None else random_config(run.model, run.model.vocab_size, run.data.max_length)
    )


def _micro_batch(run: BDSAlpaca) -> str:
    return f"{run.training.batch_rows // run.training.accumulate} rows of {run.data.max_length} tokens"


def _count(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def _gib(tree: Any) -> float:
    """What one device holds of the arrays."""

    def size(x: Any) -> int:
        held = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
        # Keys have no size of their own type; they are a few bytes.
        return 0 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else math.prod(held) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree))) / 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    presets = {name: Memory(run=preset) for name, preset in presets_for(arguments).items()}
    return run_command(NAME, presets, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
