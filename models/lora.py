"""Low-rank adapters: a few extra leaves beside frozen parameters.

An adapter is a tree of its own, so that it alone is trained, copied and saved; `attach` makes the view that every
function of a model takes. Take derivatives with respect to the adapter and the parameters stay as they are:

    scores = token_scores(lora.attach(params, adapter, settings), batch, config)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from models.config import DecoderConfig
from models.decoder import declare as declare_decoder
from models.errors import ModelError
from models.parameters import Declaration, Params, Tensor, initial_values
from models.precision import widened

TARGETS = {
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "output": "attention",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}
"""The linear maps of a layer that can be adapted, and the part of the layer that holds each."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear maps get an adapter, and how strong it is.

    Attributes:
        rank: columns of the first factor.
        alpha: the product of the factors is scaled by alpha / rank.
        targets: keys of `TARGETS`; `models.find_targets` gives them for a checkpoint's own names, and `models.load`
            asks it.
        rank_stabilised: whether to divide by the root of the rank instead of the rank (Kalajdzievski, rsLoRA, 2023).

    Raises:
        ModelError: for no target at all, or a rank or alpha that is not positive.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")
    rank_stabilised: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ModelError(f"rank and alpha must be positive, not {self.rank} and {self.alpha}")
        if not self.targets:
            raise ModelError(f"no targets: choose among {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


def declare(config: DecoderConfig, settings: LoraConfig) -> Declaration:
    """Declares an adapter: for each target, `lora_a` [layers, inputs, rank] and `lora_b` [layers, rank, outputs].

    Fresh `lora_a` is uniform in +- 1 / sqrt(inputs), as in PEFT; fresh `lora_b` is zero, so that a fresh adapter
    changes nothing.

    Raises:
        ModelError: for a target that the architecture lacks.
    """
    layers = declare_decoder(config)["layers"]
    declaration: Declaration = {}
    for target in settings.targets:
        if target not in TARGETS:
            raise ModelError(f"unknown target {target!r}: choose among {', '.join(TARGETS)}")
        part = TARGETS[target]
        if target not in layers[part]:
            raise ModelError(f"a {config.mlp} MLP has no {target!r} to adapt: leave it out of the targets")
        kernel = layers[part][target]["kernel"]
        layer, inputs, outputs = kernel.shape
        declaration.setdefault(part, {})[target] = {
            "lora_a": Tensor(
                (layer, inputs, settings.rank), (*kernel.axes[:2], "rank"), _uniform(inputs**-0.5)
            ),
            "lora_b": Tensor(
                (layer, settings.rank, outputs), ("layers", "rank", kernel.axes[2]), initializers.zeros
            ),
        }
    return {"layers": declaration}


def init(
    config: DecoderConfig,
    settings: LoraConfig,
    key: PRNGKeyArray | Array,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Draws a fresh adapter, which leaves the model as it is until it is trained.

    References:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021 (https://arxiv.org/abs/2106.09685)
    """
    return initial_values(declare(config, settings), key, dtype)


def attach(params: Params, adapter: Params, settings: LoraConfig) -> Params:
    """Parameters with the adapter beside the kernels that it adapts: x kernel + scale (x lora_a) lora_b.

    Every function of a model takes the result. Nothing of the kernels' size is made, and the adapter computes
    in the kernels' type whatever its own.
    """

    def beside(linear: Params, factors: Params) -> Params:
        dtype = linear["kernel"].dtype
        a, b = factors["lora_a"].astype(dtype), (settings.scale * factors["lora_b"]).astype(dtype)
        return {**linear, "lora_a": a, "lora_b": b}

    return _combined(params, adapter, beside)


def merge(params: Params, adapter: Params, settings: LoraConfig) -> Params:
    """Plain parameters with the adapter added into the kernels, for a folder without an adapter or for speed."""

    def added(linear: Params, factors: Params) -> Params:
        kernel = linear["kernel"]
        change = jnp.matmul(
            *(widened(factors[name]) for name in ("lora_a", "lora_b")), precision=jax.lax.Precision.HIGHEST
        )
        return {**linear, "kernel": (widened(kernel) + settings.scale * change).astype(kernel.dtype)}

    return _combined(params, adapter, added)


def _combined(params: Params, adapter: Params, combine: Callable[[Params, Params], Params]) -> Params:
    layers = dict(params["layers"])
    for part, targets in adapter["layers"].items():
        layers[part] = layers[part] | {
            target: combine(layers[part][target], factors) for target, factors in targets.items()
        }
    return {**params, "layers": layers}


def _uniform(bound: float) -> Callable[..., Array]:
    def draw(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
