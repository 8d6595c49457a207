"""Flax modules as pure functions on nested dicts, so that they train as this package's own models do.

A language model of Linen, from token ids [sequences, positions] to logits [sequences, positions, vocab]:

    model = from_linen(MyDecoder(vocab_size=1000))
    params = model.init(jax.random.key(0), tokens)

    def token_scores(params, batch):
        return scores_of_logits(model.apply(params, batch["tokens"]), batch)

and of NNX, where the module holds its parameters already:

    model = from_nnx(MyDecoder(vocab_size=1000, rngs=nnx.Rngs(0)))
    params = model.init()

Row losses, gradients, row scores and Hessian-vector products follow, as long as the module's operations have
the derivatives.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jaxtyping import Array, PRNGKeyArray

from models.errors import ModelError
from models.parameters import Params

if TYPE_CHECKING:
    from flax import linen, nnx


class FlaxFunctions(NamedTuple):
    """A module as two pure functions."""

    init: Callable[..., Params]
    """Linen: `(key, *inputs) -> params`, fresh ones. NNX: `() -> params`, those that the module holds."""
    apply: Callable[..., Any]
    """`(params, *inputs, **options)` -> what the module returns."""


def from_linen(module: "linen.Module") -> FlaxFunctions:
    """The pure functions of a Linen module.

    Args:
      module: any module whose only variables are parameters.

    Returns:
      FlaxFunctions; `apply` hands options such as `rngs` or `method` on to `module.apply`.

    Raises:
      ModelError: from `init`, for a module with other variables (batch statistics, a cache).
    """

    def init(key: PRNGKeyArray | Array, *inputs: Any, **options: Any) -> Params:
        variables = module.init(key, *inputs, **options)
        if others := variables.keys() - {"params"}:
            raise ModelError(_stateful(module, min(others)))
        return variables["params"]

    def apply(params: Params, *inputs: Any, **options: Any) -> Any:
        return module.apply({"params": params}, *inputs, **options)

    return FlaxFunctions(init, apply)


def from_nnx(module: "nnx.Module") -> FlaxFunctions:
    """The pure functions of an NNX module.

    Args:
      module: any module whose only variables are parameters and random streams. Streams begin anew with every
        call, so that a call is a function of its arguments alone: two calls drop out the same units.

    Returns:
      FlaxFunctions; later changes to the module do not reach them.

    Raises:
      ModelError: for a module with other variables (batch statistics, a cache).
    """
    # Imported here: NNX follows the newest JAX more closely than the rest of Flax, and only this function needs it.
    from flax import nnx

    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    if leaves := jax.tree.leaves(states[2], is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        raise ModelError(_stateful(module, type(leaves[0]).__name__))
    # States share their variables with the module, and would change with it.
    held = _copied(states)

    def init() -> Params:
        return nnx.to_pure_dict(held[0])

    def apply(params: Params, *inputs: Any, **options: Any) -> Any:
        state, *rest = _copied(held)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state, *rest)(*inputs, **options)

    return FlaxFunctions(init, apply)


def _stateful(module: Any, what: str) -> str:
    return (
        f"{type(module).__name__} holds {what} beside its parameters: a pure function of parameters cannot update it; "
        "use a module without (layer norms instead of batch norms, no cache)"
    )


def _copied(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf, tree)
