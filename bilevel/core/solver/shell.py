"""The shell that every solver of one training stands in: keys, frozen levels, the outer step, what is not finite.

A solver supplies its mathematics, `advance`: from a `Scene` to an `Advance`. What all of them share is here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from bilevel.core.hypergradient import Diagnostics
from bilevel.core.losses import Mean
from bilevel.core.lower_level import LowerPass, Weighed
from bilevel.core.lower_steps import Iterate, descend
from bilevel.core.problem import NO_SIZES, Batch, CameFrom, Problem, RowProblem, Sizes
from bilevel.core.solver.carry import carried
from bilevel.core.solver.solver import BOTH, Level, Solver, SolverState, StepReport
from bilevel.core.tree import PyTree, all_finite, check_smooth, norm

ALL = frozenset({"*"})
"""Stands for all outer variables."""


class Scene(NamedTuple):
    """What a solver's mathematics is given in a step.

    Attributes:
        state: before the step.
        lower_batches: [lower steps, micro-batches, ...].
        upper_batches: [micro-batches, ...].
        key: of this step.
        moves_inner: whether the inner variables will move.
        moves_outer: whether outer variables will, so that a gradient for them is wanted.
    """

    state: SolverState
    lower_batches: Batch
    upper_batches: Batch
    key: Array
    moves_inner: bool
    moves_outer: bool

    @property
    def outer(self) -> PyTree:
        """The outer variables."""
        return self.state.outer.inner

    @property
    def last_batches(self) -> Batch:
        """The last lower batch, [micro-batches, ...]."""
        return jax.tree.map(lambda x: x[-1], self.lower_batches)

    @property
    def earlier_batches(self) -> Batch | None:
        """All lower batches but the last; None where it is the only one."""
        if jax.tree.leaves(self.lower_batches)[0].shape[0] == 1:
            return None
        return jax.tree.map(lambda x: x[:-1], self.lower_batches)


class Advance(NamedTuple):
    """What a solver's mathematics found.

    Attributes:
        inner: the inner variables after the step, with their optimizer's state.
        memory: the weighting's memory after it.
        extra: the solver's own state after it.
        passed: the last lower batch's gradient pass.
        weighed: that batch under the outer variables.
        upper: the upper loss, where the step needed it.
        gradient: the outer gradient, where one was wanted.
        diagnostics: of that gradient.
        checked: whatever else must be finite for the step to be applied.
    """

    inner: Iterate
    memory: PyTree
    extra: PyTree
    passed: LowerPass
    weighed: Weighed
    upper: Mean | None = None
    gradient: PyTree | None = None
    diagnostics: Diagnostics | None = None
    checked: PyTree = ()


def solver_of(
    advance: Callable[[Scene], Advance],
    *,
    problem: Problem | RowProblem,
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    outer_start: PyTree | None,
    begin: Callable[[PyTree], PyTree] = lambda inner: (),
) -> Solver:
    """A solver from its mathematics.

    Args:
        advance: the mathematics of one step.
        problem: the bilevel problem.
        inner: optimizer of the inner variables.
        outer: optimizer of the outer variables; receives `batch=` (the last lower batch) if it asks.
        outer_start: initial outer variables, for a general problem only.
        begin: from the inner variables to the solver's own state.

    Raises:
        ValueError: a general problem without outer variables to begin with; at a step, parts that do not exist or
            cannot be frozen.
    """
    if outer_start is None and not isinstance(problem, RowProblem):
        raise ValueError("a general problem has no weighting to begin with: pass outer_start=")

    def init(key: Array, params: PyTree, sizes: Sizes = NO_SIZES) -> SolverState:
        variables, memory = outer_start, ()
        if isinstance(problem, RowProblem):
            variables, memory = problem.weighting.init(jax.random.fold_in(key, 0), sizes)
        check_smooth("outer variables", variables)
        check_smooth("inner variables", params)
        zero = jnp.zeros((), jnp.int32)
        return SolverState(
            inner=Iterate(params, inner.init(params)),
            outer=Iterate(variables, outer.init(variables)),
            memory=memory,
            extra=begin(params),
            key=jax.random.fold_in(key, 1),
            step=zero,
            skipped=zero,
            skipped_in_a_row=zero,
        )

    def step(
        state: SolverState, lower_batches: Batch, upper_batches: Batch, updates: Collection[Level] = BOTH
    ) -> tuple[SolverState, StepReport]:
        parts = outer_parts(updates, state.outer.inner)
        key, own = jax.random.split(state.key)
        scene = Scene(state, lower_batches, upper_batches, own, "inner" in updates, bool(parts))
        found = advance(scene)
        finite = all_finite((found.passed.loss, found.upper, found.inner.inner, found.checked))
        moved, diagnostics = state.outer, found.diagnostics
        if found.gradient is not None:
            moved = descend(outer, state.outer, found.gradient, batch=scene.last_batches)
            moved = _only(parts, state.outer, moved)
            finite &= all_finite(moved.inner)
            diagnostics = diagnostics or Diagnostics()
            if diagnostics.finite is not None:
                finite &= diagnostics.finite
            diagnostics = _of_parts(diagnostics.replace(finite=finite), found.gradient)
        new = state.replace(
            inner=found.inner if scene.moves_inner else state.inner,
            outer=moved,
            memory=found.memory,
            extra=found.extra,
            key=key,
        )
        report = StepReport(
            lower=found.passed.loss,
            upper=found.upper,
            row_losses=found.passed.row_losses,
            row_weights=found.weighed.weights,
            row_id=scene.last_batches.get("row_id"),
            factors=found.weighed.factors,
            finite=finite,
            diagnostics=diagnostics,
        )
        return counted(state, new, finite), report

    def carry(state: SolverState, sizes: Sizes, came_from: CameFrom) -> SolverState:
        if not isinstance(problem, RowProblem):
            return state  # no rows
        return carried(problem.weighting, outer, state, sizes, came_from)

    return Solver(init, step, carry)


def counted(old: SolverState, new: SolverState, finite: Bool[Array, ""]) -> SolverState:
    """The new state if all of it is finite, else the old one with the step counted as skipped; the key moves on."""
    chosen = optax.tree.where(finite, new.replace(key=None), old.replace(key=None))
    return chosen.replace(
        key=new.key,
        step=old.step + 1,
        skipped=old.skipped + jnp.where(finite, 0, 1),
        skipped_in_a_row=jnp.where(finite, 0, old.skipped_in_a_row + 1),
    )


def outer_parts(updates: Collection[Level], outer: PyTree) -> frozenset[str]:
    """What of the outer variables is to move: `ALL`, names of parts, or nothing.

    Raises:
        ValueError: for a level or a part that does not exist.
    """
    names = [level.removeprefix("outer.") for level in updates if level not in BOTH]
    parts = sorted(outer) if isinstance(outer, dict) else []
    for level, name in zip((level for level in updates if level not in BOTH), names, strict=True):
        if level == name or name not in parts:
            there = ", ".join(["inner", "outer", *(f"outer.{part}" for part in parts)])
            raise ValueError(f"updates: there is no {level!r}: choose among {there}")
    return ALL if "outer" in updates or (names and set(names) == set(parts)) else frozenset(names)


def _only(parts: frozenset[str], old: Iterate, new: Iterate) -> Iterate:
    """The new outer variables and optimizer state of some parts, the old ones of the others."""
    if parts == ALL:
        return new
    if not isinstance(old.optimizer, dict) or set(old.optimizer) != set(old.inner):
        raise ValueError(
            f"updates: to move {', '.join(sorted(parts))} alone, the outer optimizer's state must be a dict by part: "
            "take bilevel.weighting.by_part"
        )

    def mixed(old: dict[str, PyTree], new: dict[str, PyTree]) -> dict[str, PyTree]:
        return {name: new[name] if name in parts else old[name] for name in old}

    return Iterate(mixed(old.inner, new.inner), mixed(old.optimizer, new.optimizer))


def _of_parts(diagnostics: Diagnostics, gradient: PyTree) -> Diagnostics:
    if not isinstance(gradient, dict):
        return diagnostics
    return diagnostics.replace(parts={name: norm(part) for name, part in gradient.items()})
