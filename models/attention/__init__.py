"""Self-attention paths, chosen by a static name.

| path | holds | derivatives |
|---|---|---|
| exact | all scores | every one |
| blockwise | the scores of two blocks of positions; makes them again in the backward pass | every one |
| fused | none: one kernel (cuDNN on NVIDIA GPUs, splash on TPUs) | reverse mode alone |

On a CPU at 1024 positions blockwise takes half of exact's time (it passes over what no query can see), and 0.2 to
0.3 of its temporary memory, in a gradient and in a Hessian-vector product; the longer the rows, the less.

"Every one" means reverse, forward, forward over reverse, and all of them under vmap. A forward-mode derivative of
the fused path is refused when it is compiled, with the remedy.
"""

from collections.abc import Callable

from jaxtyping import Array, Int

from models.attention.blockwise import blockwise as blockwise
from models.attention.exact import Attend as Attend
from models.attention.exact import Keys as Keys
from models.attention.exact import Queries as Queries
from models.attention.exact import causal_mask as causal_mask
from models.attention.exact import exact as exact
from models.attention.exact import masked_attention as masked_attention
from models.attention.exact import softmax as softmax
from models.attention.fused import fused as fused
from models.errors import ModelError

PATHS: dict[str, Callable[[Int[Array, "sequences positions"], int | None], Attend]] = {
    "exact": exact,
    "blockwise": blockwise,
    "fused": fused,
}


EXACT_UP_TO = 512
"""Length of a sequence from which holding all attention scores costs more than it saves."""


def path_for(name: str, length: int) -> str:
    """The path that a name stands for at sequences of a length: `auto` is `exact` for short ones, else `blockwise`."""
    if name != "auto":
        return name
    return "exact" if length <= EXACT_UP_TO else "blockwise"


def self_attention(
    name: str, segments: Int[Array, "sequences positions"], window: int | None = None
) -> Attend:
    """Builds the attention that every layer of one forward pass shares: causal, within a segment.

    Args:
        name: the path, a key of `PATHS`; it must be static under jit.
        segments: segment id of each token. Padding (0) is a segment like any other: each of its tokens sees
            itself at least, so that no softmax is empty and no derivative is NaN.
        window: how many of the last tokens of its segment a token sees, itself included; None for all.

    Returns:
        The function of queries, keys and values.

    Raises:
        ModelError: for an unknown name, or a path that this device does not have.
    """
    if name not in PATHS:
        raise ModelError(f"unknown attention {name!r}: choose one of {', '.join(sorted(PATHS))}")
    return PATHS[name](segments, window)
