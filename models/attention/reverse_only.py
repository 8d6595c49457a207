"""A mark for functions that have no forward-mode derivative, so that asking for one says what to do instead."""

from typing import Any, NoReturn

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from models.errors import ModelError


@jax.custom_jvp
def reverse_only(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Its argument; a forward-mode derivative through it is refused when it is computed or compiled.

    Reverse mode begins as forward mode too, so the refusal cannot come while a function is traced. The tangent
    passes through a linear map that has a transpose, which is all that reverse mode needs, but no value.
    """
    return x


@reverse_only.defjvp
def _reverse_only_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return reverse_only(primals[0]), _tangent.bind(tangents[0])


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise ModelError(
        "attention 'fused' has no forward-mode derivative (jvp, Hessian-vector products, row scores): "
        "use attention='blockwise' or 'exact' in the function that is differentiated so"
    )


_tangent = Primitive("tangent_of_reverse_only")
_tangent.def_abstract_eval(lambda tangent: tangent)
_tangent.def_impl(_refuse)
mlir.register_lowering(_tangent, _refuse)
ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
batching.defvectorized(_tangent)
