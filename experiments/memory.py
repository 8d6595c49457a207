"""What a preset needs: compiles its training step for arrays without contents, and says how many bytes it takes.

python -m experiments.memory --preset llama3_8b --devices 8
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import models
from bilevel.core.solver import Solver
from bilevel.data import ArrayRows
from bilevel.errors import InputError
from bilevel.layout import AXIS, Layout, data_layout
from bilevel.methods import bds
from bilevel.runs.command import run_command
from bilevel.runs.planning import StepPlan, gibibytes, placed, plan_step
from experiments.bds_config import BDSAlpaca, presets_for
from experiments.loading import REFUSALS
from models import DecoderConfig, Found
from models.loading import begin_adapter

NAME = "memory"


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


def plan_run(run: BDSAlpaca, config: DecoderConfig, layout: Layout, rows: int) -> StepPlan:
    """One BDS step of a run.

    Args:
        run: the run's configuration.
        config: the model's architecture.
        layout: the devices.
        rows: training rows.

    Raises:
        InputError, ModelError: sizes that do not fit each other or the devices.
    """
    # An adapter is planned for without the folder that it will be written beside.
    adapter = run.lora.settings
    begun = None if adapter is None else begin_adapter(Found(config), adapter, merge=True)
    places: Any = layout.whole
    if run.model.shard:
        places = models.shardings(config, layout.mesh, {"width": AXIS})

    def parameters(dtype: str) -> Any:
        return placed(models.abstract_values(models.declare(config), dtype), places)

    def solver_of(frozen: Any) -> Solver:
        language = models.LanguageModel(
            config,
            trained,
            base=frozen,
            adapter=None if begun is None else begun[0],
            dtype=run.model.dtype,
            attention=run.model.attention,
            remat=run.model.remat,
            devices=layout.shares,
        )
        pool = {"pool": ArrayRows({"row": np.zeros(rows, np.int8)})}
        method = bds(
            language,
            pool,
            training=run.training,
            settings=run.bds,
            top_share=run.top_share,
            hypergradient=run.hypergradient,
        )
        return method.solver

    trained = parameters("float32") if begun is None else begun[1]
    token_row = jax.ShapeDtypeStruct((-(-run.data.max_length // 8) * 8,), jnp.int32)
    row = {"tokens": token_row, "segments": token_row}
    return plan_step(
        solver_of,
        trained,
        row | {"loss_mask": jax.ShapeDtypeStruct(token_row.shape, jnp.bool_)},
        replace(run.training.plan, lower_steps=run.bds.lower_steps),
        sizes={"row_id": rows},
        layout=layout,
        frozen=None if begun is None else parameters(run.model.dtype),
    )


def run(memory: Memory) -> None:
    """Prints what the step needs."""
    layout = _layout(memory)
    plan = plan_run(memory.run, _architecture(memory.run), layout, memory.rows)
    frozen, state = plan.frozen, plan.state
    devices = f"{layout.mesh.size} x {layout.mesh.devices.flat[0].device_kind}"
    print(f"{memory.run.preset} on {devices}, GiB on each device")
    if frozen is not None:
        print(f"  {gibibytes(frozen):8.2f}  {_count(frozen):,} frozen parameters, {memory.run.model.dtype}")
    print(f"  {gibibytes(state.inner.inner):8.2f}  {_count(state.inner.inner):,} trained parameters, float32")
    others = gibibytes(state) - gibibytes(state.inner.inner)
    print(f"  {others:8.2f}  optimizer states, other copies, row weights")
    print("compiling ...", file=sys.stderr)
    found: Any = plan.lower().compile().memory_analysis()
    print(
        f"  {found.temp_size_in_bytes / 2**30:8.2f}  temporary, in micro-batches of {_micro_batch(memory.run)}"
    )
    total = found.argument_size_in_bytes + found.temp_size_in_bytes
    print(f"  {total / 2**30:8.2f}  in all")


def _layout(memory: Memory) -> Layout:
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
    return data_layout()


def _tpu(topology: str) -> Layout:
    # One chip alone is no whole host of any kind.
    alone = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **alone)
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise InputError(
            f"--topology {topology}: no such TPU, or no libtpu (pip install 'jax[tpu]'): {said}"
        ) from None
    return Layout(Mesh(found.devices, (AXIS,), axis_types=(AxisType.Auto,)))


def _architecture(run: BDSAlpaca) -> DecoderConfig:
    chosen = run.model
    if chosen.model is None:
        sizes = {n: getattr(chosen, n) for n in ("width", "layers", "heads", "kv_heads", "mlp_width")}
        return models.small(chosen.vocab_size, max_length=run.data.max_length, **sizes)
    known = models.KNOWN.get(str(chosen.model))
    return models.find(chosen.model).config if known is None else known


def _micro_batch(run: BDSAlpaca) -> str:
    return f"{run.training.batch_rows // run.training.accumulate} rows of {run.data.max_length} tokens"


def _count(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    presets = {name: Memory(run=preset) for name, preset in presets_for(arguments).items()}
    return run_command(NAME, presets, run, arguments, REFUSALS)


if __name__ == "__main__":
    sys.exit(main())
