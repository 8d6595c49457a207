"""What the derivative of a whole training costs, in trainings of the same length.

    python benchmarks/whole_run.py [--steps 24] [--repeats 3]

A small Llama under clipped AdamW, 8 rows of 128 tokens a step. Each plan takes turns with plain training, and times are
medians: on CPUs of the processor's seconds. `runs` is what the plan's formula says; memory is what the plan says of the
devices, and XLA of the hungrier of the two programs (arguments, results and temporaries).
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from bilevel.core import Compiled, RowProblem
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import Iterate
from bilevel.core.unroll import Above, Plan, Reached, RunPrograms, TrainingRun, differentiate_run, footprint
from bilevel.core.unroll.measured import compiled
from bilevel.core.unroll.segments import advance
from bilevel.objectives import mean_loss, response_losses
from bilevel.weighting import row_weights

CONFIG = models.DecoderConfig(vocab_size=512, width=64, layers=5, heads=8, kv_heads=4, mlp_width=172)
POOL, ROWS, LENGTH = 200, 8, 128
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="steps of the training")
    parser.add_argument("--repeats", type=int, default=3, help="turns that medians are over")
    options = parser.parse_args()
    losses = response_losses(lambda params, batch: models.token_scores(params, batch, CONFIG, remat="dots"))
    problem = RowProblem(losses, row_weights(), mean_loss(losses))
    programs = RunPrograms(problem, OPTIMIZER)
    params = models.init(CONFIG, jax.random.key(0))
    random = np.random.default_rng(0)
    tokens = random.integers(CONFIG.vocab_size, size=(POOL, LENGTH), dtype=np.int32)
    ids = np.stack([random.permutation(POOL)[:ROWS] for _ in range(options.steps)])[:, None]

    def batches(begin: int, end: int) -> dict[str, np.ndarray]:
        rows = ids[begin:end]
        return {
            "tokens": tokens[rows],
            "segments": np.ones((*rows.shape, LENGTH), np.int32),
            "loss_mask": np.ones((*rows.shape, LENGTH), bool),
            "row_id": rows.astype(np.int32),
        }

    run = TrainingRun(Reached(Iterate(params, OPTIMIZER.init(params)), ()), options.steps, batches)
    outer = jnp.ones(POOL)
    trusted = {name: value[0, 0] for name, value in batches(0, 1).items()}
    gradient = Compiled(jax.grad(lambda inner: problem.upper(None, inner, trusted).value))
    take = Compiled(
        lambda outer, start, batches: advance(lower_level(problem), OPTIMIZER, outer, start, batches, 0)
    )

    def train() -> None:
        jax.block_until_ready(take(outer, run.start, batches(0, options.steps)))

    def derive(plan: Plan) -> None:
        found = differentiate_run(
            programs, outer, run, lambda inner: Above(jnp.zeros(POOL), gradient(inner)), plan
        )
        jax.block_until_ready(found.gradient)

    root = round(options.steps**0.5)
    segments = -(-options.steps // root)
    plans = {
        "all records at once": Plan(options.steps, options.steps),
        "all records, in segments": Plan(options.steps, root, "records"),
        "all starts (square root)": Plan(options.steps, root, starts=segments - 1),
        "two starts": Plan(options.steps, root, starts=2),
        "all starts, the last half alone": Plan(
            options.steps, root, starts=segments - 1, last=options.steps // 2
        ),
    }
    weighs = footprint(programs, outer, run)
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    todo = {"training": train, **{name: lambda plan=plan: derive(plan) for name, plan in plans.items()}}
    for each in todo.values():
        each()  # compiled
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(options.repeats):
        for name, each in todo.items():
            began = clock()
            each()
            seconds[name].append(clock() - began)
    unit = float(np.median(seconds["training"]))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"{CONFIG.layers} layers of width {CONFIG.width}, {size / 1e6:.2f} million parameters, {options.steps} steps "
        f"of {ROWS} rows of {LENGTH} tokens, {os.cpu_count()} cores, JAX {jax.__version__}, medians of "
        f"{options.repeats}\n"
        f"one training: {unit:.2f} s\n"
    )
    print(
        "| plan | segments run | runs | measured | plan's MiB | XLA's MiB |\n|---|---:|---:|---:|---:|---:|"
    )
    used = {
        length: max(
            part.argument_size_in_bytes + part.output_size_in_bytes + part.temp_size_in_bytes
            for part in compiled(programs, outer, run, length)
        )
        for length in {plan.segment for plan in plans.values()}
    }
    for name, plan in plans.items():
        print(
            f"| {name} | {plan.segment_runs} of {plan.segments} | {plan.training_runs:.1f} "
            f"| {np.median(seconds[name]) / unit:.2f} | {plan.bytes_in('device', weighs) / 2**20:.1f} "
            f"| {used[plan.segment] / 2**20:.1f} |"
        )


if __name__ == "__main__":
    main()
