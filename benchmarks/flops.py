"""Operations of matrix products in a program, counted before XLA, which counts the body of a loop once."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval


def matrix_flops(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """Multiplications and additions of all matrix products that the answer depends on, loops counted in full."""
    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _flops(jaxpr)


def _flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            total += 2.0 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
        inside = sum(map(_flops, jaxprs_in_params(equation.params)))
        # How often the body of an open loop runs, the program does not say.
        times = {"scan": equation.params.get("length"), "while": math.nan}.get(equation.primitive.name, 1)
        total += times * inside if inside else 0.0
    return total
