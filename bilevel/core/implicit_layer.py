"""Training as a layer: a function of the outer variables that `jax.grad` goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bilevel.core.hypergradient import Adjoint, Levels, Point
from bilevel.core.losses import Mean
from bilevel.core.lower_level import lower_level
from bilevel.core.lower_steps import Iterate, LookBack, LowerStep, take_lower_steps
from bilevel.core.optimizer_step import has_derivative
from bilevel.core.problem import Batch, Problem
from bilevel.core.ranges import check_ranges
from bilevel.core.tree import PyTree, check_smooth, is_smooth, norm
from bilevel.core.unroll.mixed import pull_back_steps

Layer = Callable[[PyTree, PyTree, Batch], PyTree]
"""`(outer, inner at the start, batches) -> inner after training`."""


def implicit_layer(
    lower: Callable[[PyTree, PyTree, Batch], Any],
    optimizer: optax.GradientTransformation,
    steps: int | None = None,
    adjoint: Adjoint | None = None,
    tolerance: float | None = None,
    key: Array | None = None,
) -> Layer:
    """Wraps "train on the lower level" so that an outer objective is ordinary code, and its gradient `jax.grad`.

        inner = train(outer, start, batches)        d inner / d outer by any rule of this package

    Without `adjoint` the layer is differentiated through its steps, exactly, in mixed mode, with respect to the
    outer variables and to the start. With a rule (conjugate gradients, Neumann, identity, ...) it is differentiated
    as the solution of grad_inner lower = 0, whatever the start was: the start's cotangent is zero, and nothing is kept
    of the steps.

    Layers nest: a lower loss may call another layer, which makes three levels, and so on. Second derivatives of a
    layer, which the level above takes, are those of what it computes: of its steps in forward mode, and of its rule.
    Everything that is to be differentiated enters as an argument; what the loss closes over is a constant, and so are
    integers among the outer variables.

    Args:
        lower: `(outer, inner, batch) -> Mean`, or a scalar.
        optimizer: of the inner variables; its state begins afresh in each call. Differentiating through the first
            steps of Adam is differentiating through a sign: prefer gradient descent or momentum without a rule.
        steps: how many steps to take, all on the same batch. None: batches have an axis of steps before all others.
        adjoint: rule of `bilevel.core.adjoint`; None for the derivative of the steps.
        tolerance: with a rule, repeat all of the steps until the norm of the last inner gradient is at most this,
            at most a thousand times. Such a layer has no second derivative in reverse mode.
        key: for rules that draw; one key a layer, so that a layer is a function of its arguments.

    Returns:
        `train(outer, start, batches) -> inner`.

    Raises:
        ValueError: for a tolerance without a rule, no steps, or an optimizer without a derivative where one is needed;
            by the layer, for integers among the inner variables.

    Examples:
        Ridge regression whose strength is learned:

        >>> import jax, jax.numpy as jnp, optax
        >>> from bilevel.core import implicit_layer
        >>> x, y = jnp.array([[1.0], [2.0], [3.0]]), jnp.array([1.0, 2.5, 2.5])
        >>> def ridge(log_strength, w, batch):
        ...     residual = batch["x"] @ w - batch["y"]
        ...     return jnp.mean(residual**2) + jnp.exp(log_strength) * jnp.sum(w**2)
        >>> train = implicit_layer(ridge, optax.sgd(0.05), steps=100)
        >>> def validation_loss(log_strength):
        ...     w = train(log_strength, jnp.zeros(1), {"x": x, "y": y})
        ...     return (4.0 * w[0] - 3.0) ** 2
        >>> value, slope = jax.value_and_grad(validation_loss)(0.0)
        >>> print(f"loss {value:.3f}, slope {slope:.3f}")
        loss 0.031, slope -0.198

    References:
        Blondel et al., Efficient and Modular Implicit Differentiation, NeurIPS 2022.
    """
    if adjoint is None and tolerance is not None:
        raise ValueError(
            "implicit_layer: tolerance needs a rule (adjoint=): a derivative of the steps needs a fixed number"
        )
    check_ranges({"steps": steps}, ("steps", steps is None or steps >= 1, "at least 1"))
    key = jax.random.key(0) if key is None else key

    def levels_at(outer: PyTree) -> tuple[Levels, PyTree]:
        """The problem in those outer variables that have derivatives, and these."""
        moving = jax.tree.map(lambda leaf: leaf if is_smooth(leaf) else None, outer)

        def mean(moving: PyTree, inner: PyTree, batch: Batch) -> Mean:
            whole = jax.tree.map(
                lambda moved, leaf: leaf if moved is None else moved, moving, outer, is_leaf=_is_none
            )
            loss = lower(whole, inner, batch)
            return loss if isinstance(loss, Mean) else Mean(loss, 1)

        return Levels(lower_level(Problem(mean, mean)), mean, optimizer), moving

    def taken(outer: PyTree, start: PyTree, batches: Batch) -> tuple[PyTree, Any]:
        (level, _, _), moving = levels_at(outer)
        begun = Iterate(start, optimizer.init(start))
        given: dict[str, Any] = {"outer": moving, "memory": (), "lower_batches": batches, "step": 0}
        result = take_lower_steps(
            level, optimizer, start=begun, looks_back=None, keeps_steps=adjoint is None, **given
        )
        if tolerance is not None:

            def again(
                carry: tuple[Iterate, Iterate, PyTree, Array],
            ) -> tuple[Iterate, Iterate, PyTree, Array]:
                more = take_lower_steps(level, optimizer, start=carry[1], **given)
                return more.last, more.end, more.passed.gradient, carry[3] + 1

            def unsolved(carry: tuple[Iterate, Iterate, PyTree, Array]) -> Array:
                return (norm(carry[2]) > tolerance) & (carry[3] < _MOST_ROUNDS)

            carry = (result.last, result.end, result.passed.gradient, jnp.ones((), jnp.int32))
            last, end, gradient, _ = jax.lax.while_loop(unsolved, again, carry)
        else:
            last, end, gradient = result.last, result.end, result.passed.gradient
        return end.inner, (outer, batches, result.look_back.earlier, last, end, gradient)

    @jax.custom_vjp
    def train(outer: PyTree, start: PyTree, batches: Batch) -> PyTree:
        return taken(outer, start, batches)[0]

    def pull_back(kept: Any, cotangent: PyTree) -> tuple[PyTree, PyTree, None]:
        outer, batches, earlier, last, end, gradient = kept
        levels, moving = levels_at(outer)
        level = levels.lower
        if adjoint is None:
            step = LowerStep(last, (), gradient, None, None)
            moved, start = pull_back_steps(levels, moving, earlier, step, batches, cotangent, of_start=True)
            assert start is not None  # it was asked for
            return moved, start.inner, None
        last_batch = {name: value[-1] for name, value in batches.items()}
        point = Point(
            outer=moving,
            memory=(),
            start=last,
            last=last,
            end=end,
            gradient=gradient,
            weighed=level.weigh(moving, (), last.inner, last_batch),
            lower_batches=batches,
            upper_batches={},
            key=key,
            step=0,
            look_back=LookBack(1, last, (), None),
        )
        direction = adjoint.solve(levels, point, cotangent, adjoint.init(levels, end.inner))
        at = getattr(point, adjoint.at).inner
        signal = level.cross_signal(moving, None, at, last_batch, direction.q)
        return optax.tree.scale(-1.0, signal), optax.tree.zeros_like(end.inner), None

    train.defvjp(taken, pull_back)

    def layer(outer: PyTree, start: PyTree, batches: Batch) -> PyTree:
        check_smooth("implicit_layer: inner variables", start)
        if adjoint is None and not has_derivative(optimizer, start):
            raise ValueError(
                "implicit_layer: this optimizer's update does not depend smoothly on the gradient (sign-based, like "
                "lion): give a rule (adjoint=), or take an optimizer with a derivative"
            )
        return train(outer, start, _with_step_axis(batches, steps))

    return layer


_MOST_ROUNDS = 1000


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _with_step_axis(batches: Mapping[str, Any], steps: int | None) -> dict[str, Array]:
    """[steps, one micro-batch, ...] as the lower steps want it; a batch without arrays gets one to count steps by."""
    if steps is None:
        return {name: jnp.asarray(value)[:, None] for name, value in batches.items()}
    named = {"step": 0, **batches}
    return {
        name: jnp.broadcast_to(jnp.asarray(value), (steps, 1, *jnp.shape(value)))
        for name, value in named.items()
    }
