"""Flax modules as pure functions on nested dicts, so that they train as this package's own models do.

Linen, where a key draws the parameters:

    model = from_linen(MyDecoder(vocab_size=1000))
    params = model.init(jax.random.key(0), tokens)
    logits = model.apply(params, tokens)

NNX, where the module holds them already:

    model = from_nnx(MyDecoder(vocab_size=1000, rngs=nnx.Rngs(0)))
    params = model.init()

All derivatives follow, as long as the module's operations have them.
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
    """A module as two pure functions.

    Attributes:
        init: Linen: `(key, *inputs) -> params`, fresh ones. NNX: `() -> params`, those that the module holds.
        apply: `(params, *inputs, **options)` -> what the module returns.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]


def from_linen(module: "linen.Module") -> FlaxFunctions:
    """The pure functions of a Linen module.

    Args:
        module: any module whose only variables are parameters.

    Returns:
        FlaxFunctions; `apply` hands options such as `rngs` or `method` on to `module.apply`.

    Raises:
        ModelError: from `init`, for a module with other variables (batch statistics, a cache).

    Examples:
        >>> from flax import linen
        >>> model = from_linen(linen.Dense(2))
        >>> model.init(jax.random.key(0), jax.numpy.ones((1, 3)))["kernel"].shape
        (3, 2)
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

    Examples:
        >>> from flax import nnx
        >>> model = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> model.apply(model.init(), jax.numpy.ones((1, 3))).shape
        (1, 2)
    """
    # Imported here: NNX follows the newest JAX more closely than the rest of Flax, and only this function needs it.
    from flax import nnx

    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    if leaves := jax.tree.leaves(states[2], is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        raise ModelError(_stateful(module, type(leaves[0]).__name__))
    # States share their variables with the module, and would change with it.
    held = _copied(states)
    pure = nnx.to_pure_dict(held[0])

    def init() -> Params:
        return _with_text_keys(pure)

    def apply(params: Params, *inputs: Any, **options: Any) -> Any:
        state, *rest = _copied(held)
        nnx.replace_by_pure_dict(state, _with_keys_of(pure, params))
        return nnx.merge(graph, state, *rest)(*inputs, **options)

    return FlaxFunctions(init, apply)


def _stateful(module: Any, what: str) -> str:
    return (
        f"{type(module).__name__} holds {what} beside its parameters: a pure function of parameters cannot update it; "
        "use a module without (layer norms instead of batch norms, no cache)"
    )


def _with_text_keys(tree: Any) -> Any:
    """Nested dicts whose keys are text: those of `nnx.List` are numbers, for which files have no place."""
    if not isinstance(tree, dict):
        return tree
    return {str(key): _with_text_keys(node) for key, node in tree.items()}


def _with_keys_of(tree: Any, renamed: Any) -> Any:
    """The keys that `_with_text_keys` replaced, put back."""
    if not isinstance(tree, dict):
        return renamed
    return {key: _with_keys_of(node, renamed[str(key)]) for key, node in tree.items()}


def _copied(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf, tree)
