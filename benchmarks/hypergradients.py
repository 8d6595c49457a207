"""What each hypergradient costs on a small transformer, in units of one gradient of the same batch.

    python benchmarks/hypergradients.py [--repeats 9]

Three tables: estimators around one Adam step; ways to differentiate through four of them; whole solver steps beside
the gradient passes in them. Programs take turns, and times are medians: on CPUs of the processor's seconds, which other
work on the machine disturbs least. They are compiled afresh, because XLA's programs from a cache on disk run up to 8%
slower. Memory is what XLA sets aside beyond arguments and results. FLOPs are those of matrix products, counted in the
program, since XLA counts the body of a loop once. The cosine is to the derivative of the upper loss through eight
further steps on the same rows. Layers run under scan and are rematerialised, but where a row says otherwise.
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flops import matrix_flops

import models
from bilevel.core import ESTIMATORS, EstimatorSettings, RowProblem, make_solver, unroll
from bilevel.core.accumulate import mean_value_and_gradient
from bilevel.core.estimators import EstimatorName
from bilevel.core.hypergradient import Hypergradient, Levels, Point
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import Iterate, LookBack, take_lower_steps
from bilevel.core.unroll.training import training
from bilevel.objectives import mean_loss, response_losses
from bilevel.weighting import row_logits

CONFIG = models.DecoderConfig(vocab_size=1024, width=128, layers=4, heads=4, kv_heads=4, mlp_width=344)
ROWS, LENGTH, WALKED = 8, 128, 32
UNROLLED, HORIZON = 4, 8
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
OUTER = jnp.zeros(ROWS)


@dataclass(frozen=True)
class Program:
    """Something to measure; with a reference, it answers with a hypergradient."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    reference: np.ndarray | None = None


def rows(seed: int, share: float) -> dict[str, np.ndarray]:
    """Rows that walk over a few tokens: a share of them as trusted rows do, the rest in another way."""
    random = np.random.default_rng(seed)
    walks = [np.random.default_rng(number).permutation(WALKED) for number in (100, 101)]
    tokens = random.integers(WALKED, size=(ROWS, LENGTH), dtype=np.int32)
    for row in range(ROWS):
        walk = walks[0 if row < share * ROWS else 1]
        for place in np.flatnonzero(random.random(LENGTH - 1) < 0.8) + 1:
            tokens[row, place] = walk[tokens[row, place - 1]]
    return {
        "tokens": tokens[None],
        "segments": np.ones((1, ROWS, LENGTH), np.int32),
        "loss_mask": np.ones((1, ROWS, LENGTH), bool),
        "row_id": np.arange(ROWS, dtype=np.int32)[None],
    }


LOWER, UPPER = rows(0, 0.5), rows(1, 1.0)


def levels(remat: str = "full") -> tuple[RowProblem, Levels]:
    losses = response_losses(lambda params, batch: models.token_scores(params, batch, CONFIG, remat=remat))
    problem = RowProblem(losses, row_logits("sigmoid"), mean_loss(losses))
    return problem, Levels(lower_level(problem), problem.upper, OPTIMIZER)


def steps_on(number: int) -> dict[str, np.ndarray]:
    return {name: np.broadcast_to(value, (number, *value.shape)) for name, value in LOWER.items()}


def take(number: int, start: Iterate, estimator: Hypergradient | None = None) -> Any:
    level = levels()[1].lower
    back = (
        {}
        if estimator is None
        else {"looks_back": estimator.looks_back, "keeps_steps": estimator.keeps_steps}
    )
    return take_lower_steps(
        level, OPTIMIZER, outer=OUTER, memory=(), start=start, lower_batches=steps_on(number), step=0, **back
    )


def estimate(
    estimator: Hypergradient,
    number: int,
    start: Iterate,
    last: Iterate,
    end: Iterate,
    gradient: Any,
    back: Any,
    remat: str = "full",
) -> jax.Array:
    _, both = levels(remat)
    weighed = both.lower.weigh(OUTER, (), last.inner, LOWER)
    point = Point(
        outer=OUTER,
        memory=(),
        start=start,
        last=last,
        end=end,
        gradient=gradient,
        weighed=weighed,
        lower_batches=steps_on(number),
        upper_batches=UPPER,
        key=jax.random.key(0),
        step=0,
        look_back=back,
    )
    return estimator.estimate(both, point, estimator.init(both, end.inner)).gradient


def through(number: int, estimator: Hypergradient, start: Iterate) -> jax.Array:
    """Lower steps and the estimate around them."""
    taken = take(number, start, estimator)
    return estimate(estimator, number, start, taken.last, taken.end, taken.passed.gradient, taken.look_back)


def one_gradient(start: Iterate, remat: str = "full") -> Any:
    return levels(remat)[1].lower.gradient(OUTER, jnp.ones((1, ROWS)), start.inner, LOWER).gradient


def alone(estimator: Hypergradient, remat: str, last: Iterate, end: Iterate, gradient: Any) -> jax.Array:
    """The estimate around one lower step that is taken already."""
    return estimate(estimator, 1, last, last, end, gradient, LookBack(1, last, (), None), remat)


def around_one_step(start: Iterate, reference: np.ndarray) -> list[Program]:
    taken = jax.jit(lambda start: (lambda t: (t.last, t.end, t.passed.gradient))(take(1, start)))(start)
    level = levels()[1].lower

    def product(inner: Any, direction: Any) -> Any:
        return level.linearised_gradient(OUTER, jnp.ones((1, ROWS)), inner, LOWER, direction).hessian_product

    programs = [
        Program("one gradient", one_gradient, (start,)),
        Program("one gradient, layers kept", partial(one_gradient, remat="none"), (start,)),
        Program("one Hessian product", product, (start.inner, jax.tree.map(jnp.copy, start.inner))),
    ]
    for title, settings in (
        ("identity", EstimatorSettings("identity")),
        ("optimizer_aware", EstimatorSettings("optimizer_aware")),
        ("optimizer_aware, layers kept", EstimatorSettings("optimizer_aware")),
        ("unroll, 1 step", EstimatorSettings("unroll")),
        (
            "conjugate_gradient, 5 products",
            EstimatorSettings("conjugate_gradient", iterations=5, damping=10.0),
        ),
        ("neumann, 5 products", EstimatorSettings("neumann", iterations=5, step_size=0.1)),
        ("nystrom, 5 products at once", EstimatorSettings("nystrom", rank=5, damping=10.0)),
        ("evolution_strategies, 4 samples", EstimatorSettings("evolution_strategies", samples=4)),
        ("pzobo, 4 samples", EstimatorSettings("pzobo", samples=4)),
    ):
        make = ESTIMATORS[settings.name].hypergradient
        assert make is not None  # each of these stands apart from its solver
        remat = "none" if "layers kept" in title else "full"
        programs.append(Program(title, partial(alone, make(settings), remat), taken, reference))
    return programs


def through_steps(start: Iterate, reference: np.ndarray) -> list[Program]:
    def reverse(remat: str, checkpoint: bool) -> Callable[[Iterate], Any]:
        problem, both = levels(remat)

        def gradient(start: Iterate) -> Any:
            def upper(outer: jax.Array) -> jax.Array:
                end = training(both, (), steps_on(UNROLLED), 0, checkpoint)(outer, start)
                return mean_value_and_gradient(problem.upper, (outer, end), UPPER)[0].value

            return jax.grad(upper)(OUTER)

        return gradient

    ways = {
        "mixed": lambda start: through(UNROLLED, unroll(), start),
        "reverse, steps and layers checkpointed": reverse("full", True),
        "reverse, steps checkpointed": reverse("none", True),
        "reverse, layers checkpointed": reverse("full", False),
        "reverse, naive": reverse("none", False),
    }
    return [
        Program("one gradient", one_gradient, (start,)),
        Program("the lower steps alone", lambda start: take(UNROLLED, start).end.inner, (start,)),
        *(Program(name, way, (start,), reference) for name, way in ways.items()),
    ]


def whole_steps(start: Iterate) -> list[Program]:
    problem, both = levels()
    programs = [Program("one gradient", one_gradient, (start,))]

    def passes(first: Any, second: Any) -> Any:
        ones = jnp.ones((1, ROWS))
        below = [both.lower.gradient(OUTER, ones, inner, LOWER) for inner in (first, second)]
        above = mean_value_and_gradient(both.upper, (OUTER, first), UPPER)
        return [(p.gradient, p.signal) for p in below], above

    other = jax.tree.map(lambda x: 1.01 * x, start.inner)
    programs.append(Program("the penalty's three gradient passes", passes, (start.inner, other)))
    names: tuple[EstimatorName, ...] = ("penalty", "penalty_single", "soba", "value_gap", "optimizer_aware")
    steps = [(f"{name}, a step", EstimatorSettings(name), problem) for name in names]
    for shares, reuse in (("forward pass shared", True), ("nothing shared", False)):
        aware = EstimatorSettings("optimizer_aware", reuse=reuse)
        steps.append((f"the last, layers kept, {shares}", aware, levels("none")[0]))
    for title, settings, solved in steps:
        solver = make_solver(settings, solved, OPTIMIZER, optax.sgd(0.1))
        state = solver.init(jax.random.key(0), start.inner, {"row_id": ROWS})
        state = state.replace(inner=start)
        if settings.name == "penalty":
            state = state.replace(extra=Iterate(other, start.optimizer))
        programs.append(
            Program(title, lambda state, step=solver.step: step(state, steps_on(1), UPPER)[0], (state,))
        )
    return programs


def cosine(found: Any, reference: np.ndarray) -> float:
    found = np.asarray(found)
    return float(found @ reference / (np.linalg.norm(found) * np.linalg.norm(reference)))


def table(title: str, programs: list[Program], repeats: int) -> str:
    """Costs in units of the first program, all programs taking turns."""
    compiled = [jax.jit(p.function).lower(*p.arguments).compile() for p in programs]
    answers = [jax.block_until_ready(run(*p.arguments)) for run, p in zip(compiled, programs, strict=True)]
    # Other work on the machine lengthens the wall clock's seconds, and hardly the processor's.
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    seconds = np.empty((repeats, len(programs)))
    random = np.random.default_rng(0)
    for turn in range(repeats):
        # What a program leaves in the processor's caches meets another one each time.
        for k in random.permutation(len(programs)):
            began = clock()
            jax.block_until_ready(compiled[k](*programs[k].arguments))
            seconds[turn, k] = clock() - began
    times = np.median(seconds, axis=0)
    analyses: list[Any] = [run.memory_analysis() for run in compiled]
    memory = [found.temp_size_in_bytes for found in analyses]
    flops = [matrix_flops(p.function, p.arguments) for p in programs]
    unit = f"one gradient: {1e3 * times[0]:.0f} ms, {memory[0] / 2**20:.1f} MiB"
    lines = [f"| {title} | time | memory | FLOPs | cosine |", "|---|---:|---:|---:|---:|"]
    for k, program in enumerate(programs):
        counted = f"{flops[k] / flops[0]:.2f}" if math.isfinite(flops[k]) else ""
        angle = "" if program.reference is None else f"{cosine(answers[k], program.reference):.3f}"
        ratios = f"{times[k] / times[0]:.2f} | {memory[k] / memory[0]:.2f}"
        lines.append(f"| {program.name} | {ratios} | {counted} | {angle} |")
    return "\n".join([f"\n{unit}\n", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="turns that medians are over")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    params = models.init(CONFIG, jax.random.key(0))
    size = sum(x.size for x in jax.tree.leaves(params))
    print(
        f"{CONFIG.layers} layers of width {CONFIG.width}, {size / 1e6:.2f} million parameters, {ROWS} rows of "
        f"{LENGTH} tokens, {os.cpu_count()} cores, JAX {jax.__version__}, medians of {options.repeats}; in units of "
        "one gradient",
        flush=True,
    )
    start = jax.jit(lambda start: take(30, start).end)(Iterate(params, OPTIMIZER.init(params)))
    reference = np.asarray(jax.jit(lambda start: through(HORIZON, unroll(), start))(start))
    for title, programs in (
        ("around one Adam step", around_one_step(start, reference)),
        (f"through {UNROLLED} Adam steps, steps included", through_steps(start, reference)),
        ("whole solver steps", whole_steps(start)),
    ):
        print(table(title, programs, options.repeats), flush=True)


if __name__ == "__main__":
    main()
