"""A training run that can be taken again, and the two programs that take it and walk it backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel.core.compiled import Compiled
from bilevel.core.hypergradient import Levels
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import LowerStep
from bilevel.core.optimizer_step import has_derivative
from bilevel.core.problem import Batch, Problem, RowProblem
from bilevel.core.tree import PyTree
from bilevel.core.unroll.segments import Pulled, Reached, Recorded, Trace, pull_back, record


class TrainingRun(NamedTuple):
    """A training run that can be taken again.

    Attributes:
        start: where it begins.
        steps: how many lower steps it takes.
        batches: `(begin, end) -> [end - begin, micro-batches, ...]`, the lower batches of these steps, always the same.
    """

    start: Reached
    steps: int
    batches: Callable[[int, int], Batch]


class RunPrograms:
    """Takes segments of training runs of one problem, and pulls them back; compiled once a segment length.

    Args:
        problem: the bilevel problem.
        optimizer: of the inner variables: any optax chain; one that has a derivative, to pull back.
        out_shardings: where the states of a run are to lie, a prefix of `Reached`; None leaves it to the compiler.
        queries: whether several upper losses are pulled back at once, which then have the first axis of `Pulled`.
    """

    def __init__(
        self,
        problem: Problem | RowProblem,
        optimizer: optax.GradientTransformation,
        *,
        out_shardings: PyTree = None,
        queries: bool = False,
    ) -> None:
        lower = lower_level(problem)
        # As in `alternating`: first-order functions allow no derivative of what is taken of them.
        differentiable = problem._replace(first_order=None) if isinstance(problem, RowProblem) else problem
        levels = Levels(lower_level(differentiable), problem.upper, optimizer)

        def take(outer: PyTree, start: Reached, batches: Batch, first: Any) -> Recorded:
            return record(lower, optimizer, outer, start, batches, first)

        def pull(outer: PyTree, steps: LowerStep, batches: Batch, pulled: Pulled) -> tuple[Pulled, Trace]:
            def one(pulled: Pulled) -> tuple[Pulled, Trace]:
                return pull_back(levels, outer, steps, batches, pulled)

            return jax.vmap(one)(pulled) if queries else one(pulled)

        self.optimizer, self.queries = optimizer, queries
        places: tuple[Any, ...] = (out_shardings, None, None)
        self.record = Compiled(take, out_shardings=None if out_shardings is None else Recorded(*places))
        self.pull_back = Compiled(pull)

    def end_of(self, outer: PyTree, run: TrainingRun, segment: int) -> Reached:
        """Where a run ends, its steps taken in segments of this length."""
        at = settled(run.start)
        for begin in range(0, run.steps, segment):
            end = min(begin + segment, run.steps)
            at = self.record(outer, at, run.batches(begin, end), jnp.int32(begin)).end
        return at

    def check(self, outer: PyTree, run: TrainingRun) -> None:
        """Checks that a run has a derivative.

        Raises:
            ValueError: the optimizer has none, or the lower level computes in less than 32 bits.
        """
        start = run.start
        taken = jax.make_jaxpr(self.record)(outer, settled(start), run.batches(0, 1), jnp.int32(0))
        narrow = _narrow(taken.jaxpr)
        if narrow is not None:
            raise ValueError(
                f"the lower level computes in {narrow}, in which the derivative of a whole run can point the wrong "
                "way without a sign of it: train in float32"
            )
        if not has_derivative(self.optimizer, start.iterate.inner):
            raise ValueError(
                "the inner optimizer's update does not depend smoothly on the gradient (sign-based, like lion), so "
                "that a run has no derivative: train with one such as adamw or sgd"
            )


def _narrow(jaxpr: Any) -> Any:
    """A floating-point type of less than 32 bits that a program computes in, its inner programs included, or None."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
                return dtype
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            found = _narrow(getattr(inner, "jaxpr", inner)) if _is_program(inner) else None
            if found is not None:
                return found
    return None


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def settled(tree: PyTree) -> PyTree:
    """The arrays of a tree in strong types: of weak ones no file knows, and they would be rounded otherwise."""

    def strong(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        keys = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if keys else jax.lax.convert_element_type(leaf, leaf.dtype)

    return jax.tree.map(strong, tree)
